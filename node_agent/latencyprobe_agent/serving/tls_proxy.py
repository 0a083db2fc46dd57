"""The TLS proxy: mutual TLS with a limited number of connections.

gRPC could do TLS itself, but it does not report refused clients, and does not limit connections. So
gRPC listens on a private Unix socket, and the proxy copies the bytes of each admitted connection to
it. A connection has a name on that side (`peer` of a call), by which the service identifies it.

A client with another name than the operator's is refused right after its handshake: no byte of it
reaches gRPC.

The number of connections is bounded, also in a flood. If too many TLS handshakes are pending, the
oldest one is cancelled: the operator, which completes its handshake quickly, is still admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from latencyprobe.process.tasks import first_to_end
from latencyprobe_agent.serving.tls import RenewedContext, names_in

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_HANDSHAKES = 32
HANDSHAKE_S = 5.0
_CHUNK_BYTES = 64 << 10
# A flood is reported, and does not flood the log.
_LOG_S = 10.0


class TlsRefusal(StrEnum):
    """A reason for refusing a client."""

    NO_CERTIFICATE = "no_certificate"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    FOREIGN = "foreign_authority"
    PURPOSE = "no_client_certificate"
    NAME = "other_name"
    NO_TLS = "no_tls"
    SLOW = "slow_handshake"
    CROWDED = "crowded"


# X509_V_ERR_*, include/openssl/x509_vfy.h
_BY_VERIFY_CODE = {
    9: TlsRefusal.NOT_YET_VALID,
    10: TlsRefusal.EXPIRED,
    18: TlsRefusal.FOREIGN,
    19: TlsRefusal.FOREIGN,
    20: TlsRefusal.FOREIGN,
    21: TlsRefusal.FOREIGN,
    26: TlsRefusal.PURPOSE,
}


def refusal_in(error: Exception) -> TlsRefusal:
    """Return the reason of a failed handshake."""
    if isinstance(error, TimeoutError):
        return TlsRefusal.SLOW
    if isinstance(error, ssl.SSLCertVerificationError):
        return _BY_VERIFY_CODE.get(error.verify_code, TlsRefusal.FOREIGN)
    if isinstance(error, ssl.SSLError) and error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return TlsRefusal.NO_CERTIFICATE
    # asyncio has its own error for a handshake that takes too long.
    if isinstance(error, ConnectionAbortedError) and "handshake is taking longer" in str(error):
        return TlsRefusal.SLOW
    return TlsRefusal.NO_TLS


class RefusalLog:
    """The counts of refused clients, and a rate-limited log line for each reason."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._logged: dict[TlsRefusal, float] = {}
        self._suppressed: dict[TlsRefusal, int] = {}

    def refuse(self, refusal: TlsRefusal, peer: str, detail: str) -> None:
        """Count and log a refusal. Of client data, `detail` holds only names that our CA signed."""
        self._count(refusal)
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(refusal, -_LOG_S) < _LOG_S:
            self._suppressed[refusal] = self._suppressed.get(refusal, 0) + 1
            return
        self._logged[refusal] = now
        others = self._suppressed.pop(refusal, 0)
        more = f" (and {others} more since the last message)" if others else ""
        log.warning("refused %s: %s%s", peer, detail, more)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An admitted client."""

    address: str


class TlsProxy:
    """A listener that forwards one client to the Unix socket `inner`.

    The client needs a certificate of our CA for `client_name`.
    """

    def __init__(
        self, context: RenewedContext, inner: Path, client_name: str, refusals: RefusalLog
    ) -> None:
        self._context = context
        self._inner = inner
        self._client_name = client_name
        self._refusals = refusals
        self._token = secrets.token_hex(8)  # so that no other process's socket has our names
        self._numbers = itertools.count(1)
        self._admitted: dict[str, Admitted] = {}
        self._handshakes: dict[asyncio.Task[None], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    def start(self, listener: socket.socket) -> None:
        """Accept connections on this listening socket from now on."""
        listener.setblocking(False)
        self._listener = listener
        self._spawn(self._accept(listener))

    async def close(self) -> None:
        """Stop accepting, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for _ in range(2):  # a transport closes its socket in the next turn of the loop
            await asyncio.sleep(0)

    def admitted(self, peer: str) -> Admitted | None:
        """Return the client of a connection, by gRPC's name of it."""
        return self._admitted.get(peer.removeprefix("unix-abstract:"))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or aborted by the client
                log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            peer = _peer_text(address)
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._evict_oldest()
            task = self._spawn(self._serve(connection, peer))
            # Also if it was evicted before it began. Closing a socket twice does no harm.
            task.add_done_callback(_closing(connection))
            self._handshakes[task] = peer

    def _evict_oldest(self) -> None:
        task = next(iter(self._handshakes))
        peer = self._handshakes.pop(task)
        task.cancel()
        self._refusals.refuse(
            TlsRefusal.CROWDED, peer, f"{MAX_HANDSHAKES} other TLS handshakes are pending"
        )

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            outer = await self._shake_hands(connection, peer)
        finally:
            self._handshakes.pop(task, None)
        if outer is None:
            return
        try:
            if not self._admits(outer, peer):
                outer.writer.transport.abort()
                return
            await self._pass_on(outer, peer)
            outer.writer.close()
            with contextlib.suppress(OSError):  # the client may have disconnected first
                await outer.writer.wait_closed()
        except asyncio.CancelledError:
            outer.writer.transport.abort()
            raise

    async def _shake_hands(self, connection: socket.socket, peer: str) -> _ByteStream | None:
        """Do the TLS handshake; return the stream inside, or None if it fails."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_CHUNK_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            await _wait_for_first_byte(connection)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context.current(),
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, TimeoutError) as error:  # an ssl.SSLError is an OSError
            refusal = refusal_in(error)
            self._refusals.refuse(refusal, peer, _REASONS[refusal])
            return None
        return _ByteStream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def _admits(self, outer: _ByteStream, peer: str) -> bool:
        """Return True for a client with the right name while there is room; refuse others."""
        names = names_in(outer.writer.get_extra_info("peercert") or {})
        if self._client_name not in names:
            shown = ", ".join(sorted(names)) or "no name"
            detail = f"the certificate is for {shown}, not for {self._client_name}"
            self._refusals.refuse(TlsRefusal.NAME, peer, detail)
            return False
        if len(self._admitted) >= MAX_CONNECTIONS:
            detail = f"{MAX_CONNECTIONS} connections are open"
            self._refusals.refuse(TlsRefusal.CROWDED, peer, detail)
            return False
        return True

    async def _pass_on(self, outer: _ByteStream, peer: str) -> None:
        name = f"latencyprobe-{self._token}-{next(self._numbers)}"
        self._admitted[name] = Admitted(peer)
        try:
            with socket.socket(socket.AF_UNIX) as inside:
                inside.setblocking(False)
                inside.bind(f"\0{name}")
                await asyncio.get_running_loop().sock_connect(inside, str(self._inner))
                reader, writer = await asyncio.open_unix_connection(sock=inside)
                with contextlib.closing(writer):
                    await _relay(outer, _ByteStream(reader, writer))
        except OSError as error:
            log.debug("lost the connection of %s: %s", peer, error)
        finally:
            del self._admitted[name]


def _closing(connection: socket.socket) -> Callable[[asyncio.Task[None]], None]:
    return lambda _: connection.close()


async def _wait_for_first_byte(connection: socket.socket) -> None:
    """Wait until the client sends its first byte; raise TimeoutError.

    Until then a client costs only a descriptor, whereas asyncio's TLS allocates 256 KiB at once.
    """
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), HANDSHAKE_S)
    finally:
        loop.remove_reader(connection)


_REASONS = {
    TlsRefusal.NO_CERTIFICATE: "the client sent no certificate",
    TlsRefusal.EXPIRED: "the certificate has expired",
    TlsRefusal.NOT_YET_VALID: "the certificate is not yet valid: check the clocks of both machines",
    TlsRefusal.FOREIGN: "the certificate is not signed by the configured CA",
    TlsRefusal.PURPOSE: "the certificate is not valid for client authentication",
    TlsRefusal.NO_TLS: "the TLS handshake failed; the client may not trust the agent's certificate",
    TlsRefusal.SLOW: f"the TLS handshake took longer than {HANDSHAKE_S:g} s",
}


@dataclass(frozen=True, slots=True)
class _ByteStream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def _relay(one: _ByteStream, other: _ByteStream) -> None:
    """Copy in both directions until either side ends: HTTP/2 does not use half a connection."""
    await first_to_end(_copy(one.reader, other.writer), _copy(other.reader, one.writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end. `drain` waits for a slow reader, and so slows its writer down."""
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


def _peer_text(address: tuple[str, int]) -> str:
    host, port = address[:2]
    host = host.removeprefix("::ffff:")  # IPv4 on a socket for both
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
