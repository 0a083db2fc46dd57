"""Hostile clients of an agent or operator, in a process of their own.

`flood` runs one: python -m bench.hostile_clients FLOOD, where FLOOD is a document. It prints what
became of the connections or messages.
"""

from __future__ import annotations

import asyncio
import collections
import json
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import grpc.aio

from bench.outcome import CannotMeasureError
from bench.watched_process import LOOPBACK, get
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.process.open_files import raise_open_files_limit
from latencyprobe_operator.agents.credentials import ClientTlsFiles

HANDSHAKES, MUTE, IDLE, GETS = "handshakes", "mute", "idle", "gets"
PLAIN, GZIP = "plain", "gzip"
_AT_ONCE = 50
_CLOSED_S = 15.0
_MESSAGE_S = 60.0
# Field 2 of DesiredState, a probe: a message of 4 bytes, whose field 1 is a text of 2.
_PROBE = b"\x12\x04\x0a\x02ab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """Connections, requests or messages of one kind.

    `tls`: of a client of TLS, the files of its authority, its certificate and its key. `hold_s`:
    mute and idle connections stay open for so long. `size`: of a message, in bytes.
    """

    kind: str
    port: int
    count: int
    tls: Sequence[str] = ()
    hold_s: float = 0.0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Fate:
    """The ends of connections or messages: how many of each, such as "answered" or "closed"."""

    counts: dict[str, int]
    seconds: float


async def flood(what: Flood) -> Fate:
    """Run the flood in another process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.hostile_clients", json.dumps(asdict(what))),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CannotMeasureError(f"the flood {what.kind} ended with status {process.returncode}")
    return Fate(**json.loads(output))


async def _run(what: Flood) -> Fate:
    clients: dict[str, Callable[[Flood], Awaitable[collections.Counter[str]]]] = {
        HANDSHAKES: _handshakes,
        MUTE: _held,
        IDLE: _held,
        GETS: _gets,
        PLAIN: _messages,
        GZIP: _messages,
    }
    began = time.monotonic()
    counts = await clients[what.kind](what)
    return Fate(dict(counts), time.monotonic() - began)


async def _each(count: int, client: Callable[[], Awaitable[str]]) -> collections.Counter[str]:
    """Run so many clients, some of them at once; return what became of them."""
    counts: collections.Counter[str] = collections.Counter()
    numbers = iter(range(count))

    async def take_turns() -> None:
        for _ in numbers:
            counts[await client()] += 1

    await asyncio.gather(*(take_turns() for _ in range(_AT_ONCE)))
    return counts


def _context(what: Flood) -> ssl.SSLContext:
    ca, certificate, key = what.tls
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


async def _handshakes(what: Flood) -> collections.Counter[str]:
    context = _context(what)

    async def client() -> str:
        try:
            async with asyncio.timeout(_CLOSED_S):
                reader, writer = await asyncio.open_connection(
                    LOOPBACK, what.port, ssl=context, server_hostname=AGENT_NAME
                )
                try:
                    return "admitted" if await reader.read(1) else "closed"
                finally:
                    writer.transport.abort()
        except TimeoutError:
            return "without an answer"
        except OSError:  # an ssl.SSLError is one
            return "closed"

    return await _each(what.count, client)


async def _held(what: Flood) -> collections.Counter[str]:
    """Hold connections that send nothing, after their TLS handshake if there is a certificate."""
    context = _context(what) if what.tls else None
    name = AGENT_NAME if context else None
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def client() -> str:
        try:
            async with asyncio.timeout(_CLOSED_S):
                pair = await asyncio.open_connection(
                    LOOPBACK, what.port, ssl=context, server_hostname=name
                )
        except (OSError, TimeoutError):
            return "refused"
        opened.append(pair)
        return "opened"

    counts = await _each(what.count, client)
    await asyncio.sleep(what.hold_s)
    counts["closed"] = sum(_is_closed(*each) for each in opened)
    for _, writer in opened:
        writer.transport.abort()
    return counts


def _is_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()


async def _gets(what: Flood) -> collections.Counter[str]:
    async def client() -> str:
        try:
            async with asyncio.timeout(_CLOSED_S):
                await get(what.port, "/metrics")
        except TimeoutError:
            return "without an answer"
        except (OSError, EOFError):
            return "closed"
        return "answered"

    return await _each(what.count, client)


async def _messages(what: Flood) -> collections.Counter[str]:
    """Send large messages all at once, each as the request of an Apply."""
    credentials = ClientTlsFiles(*map(Path, what.tls)).credentials()
    compression = grpc.Compression.Gzip if what.kind == GZIP else grpc.Compression.NoCompression
    options = (("grpc.ssl_target_name_override", AGENT_NAME),)
    message = _PROBE * (what.size // len(_PROBE))
    async with grpc.aio.secure_channel(
        f"{LOOPBACK}:{what.port}", credentials, options=options, compression=compression
    ) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/latencyprobe.v1.NodeAgent/Apply"
        )

        async def client() -> str:
            try:
                await method(message, timeout=_MESSAGE_S)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "accepted"

        return await _each(what.count, client)


def main() -> None:
    """Run the flood of the command line."""
    raise_open_files_limit()
    fate = asyncio.run(_run(Flood(**json.loads(sys.argv[1]))))
    print(json.dumps(asdict(fate)))


if __name__ == "__main__":
    main()
