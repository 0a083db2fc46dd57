"""The demo's client and server, each in its own netns.

Run as `python -m latencyprobe.commands.demo_traffic ROLE`.

The server has a fault for the demo to find: it repeatedly blocks its event loop with other work.
Requests wait in their sockets during that time.

Each role writes `up`, and waits for a line on stdin before it uses the network. Then it writes
`ready`, and ends when stdin ends. The client's last line holds its counts as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import cast

PORT = 8080
SERVER_IPV4 = "192.0.2.2"  # TEST-NET-1, RFC 5737
SERVER_IPV6 = "2001:db8::2"  # documentation, RFC 3849
REQUEST_BYTES = 256
ANSWER_BYTES = 2048
BLOCKING_EVERY_S = 0.01
BLOCKING_S = 0.01
CLIENTS_PER_FAMILY = 2
REQUESTS_PER_CONNECTION = 50
PAUSE_S = 0.001
DATAGRAM_PAUSE_S = 0.02
TIME_TO_END_S = 5.0


@dataclass(slots=True)
class Sent:
    """The client's own counts."""

    connections: int = 0
    requests: int = 0
    datagrams: int = 0


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of a fixed size."""
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while await _read(reader, REQUEST_BYTES):
            writer.write(bytes(ANSWER_BYTES))


async def _block() -> None:
    """Block the event loop at intervals."""
    while True:
        await asyncio.sleep(BLOCKING_EVERY_S)
        time.sleep(BLOCKING_S)  # noqa: ASYNC251 (the fault to be found)


class _Echo(asyncio.DatagramProtocol):
    """A protocol that sends each datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def _serve(until: Awaitable[None]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.start_server(_answer, [SERVER_IPV4, SERVER_IPV6], PORT)
    await loop.create_datagram_endpoint(_Echo, local_addr=(SERVER_IPV4, PORT))
    blocking = asyncio.create_task(_block())
    _say("ready")
    await until
    blocking.cancel()


async def _ask(until: Awaitable[None]) -> None:
    """Send requests until the end, then wait for the answers of all that were counted."""
    sent, is_over = Sent(), asyncio.Event()
    _say("ready")
    hosts = [SERVER_IPV4, SERVER_IPV6] * CLIENTS_PER_FAMILY
    clients = [asyncio.create_task(_requests(host, sent, is_over)) for host in hosts]
    clients.append(asyncio.create_task(_datagrams(sent, is_over)))
    await until
    is_over.set()
    _, unanswered = await asyncio.wait(clients, timeout=TIME_TO_END_S)
    for client in unanswered:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    _say(json.dumps(asdict(sent)))


async def _requests(host: str, sent: Sent, is_over: asyncio.Event) -> None:
    """Send requests, each after the whole answer to the last; reconnect now and then."""
    while not is_over.is_set():
        reader, writer = await asyncio.open_connection(host, PORT)
        sent.connections += 1
        with contextlib.closing(writer):
            for _ in range(REQUESTS_PER_CONNECTION):
                writer.write(bytes(REQUEST_BYTES))
                sent.requests += 1
                await _read(reader, ANSWER_BYTES)
                await asyncio.sleep(PAUSE_S)
                if is_over.is_set():
                    return


async def _datagrams(sent: Sent, is_over: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.connect((SERVER_IPV4, PORT))
        while not is_over.is_set():
            await loop.sock_sendall(udp, bytes(REQUEST_BYTES))
            sent.datagrams += 1
            await loop.sock_recv(udp, REQUEST_BYTES)
            await asyncio.sleep(DATAGRAM_PAUSE_S)


async def _read(reader: asyncio.StreamReader, size: int) -> bytes:
    """Read this number of bytes; return none at the end of the stream."""
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return b""


ROLES: dict[str, Callable[[Awaitable[None]], Awaitable[None]]] = {"server": _serve, "client": _ask}


async def _play(role: str) -> None:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    _say("up")
    await reader.readline()
    await ROLES[role](_end_of(reader))


async def _end_of(reader: asyncio.StreamReader) -> None:
    await reader.read()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_play(sys.argv[1]))
