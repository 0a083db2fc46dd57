"""The server's side of a TLS connection, directly on a socket.

asyncio's TLS takes 256 KiB for each handshake, and a part of them stays after a flood of cancelled
handshakes: 160 MiB were seen. This takes some 50 KiB, and only from a client's first byte on.
Nothing of it is left when the socket is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Protocol

_CHUNK_BYTES = 64 << 10


class ByteStream(Protocol):
    """A connection that one task may read while another one writes."""

    async def read(self) -> bytes:
        """Return what has come; empty at the end. Raises OSError."""

    async def write(self, data: bytes) -> None:
        """Send it all. A slow receiver slows its sender down. Raises OSError."""


class SocketStream:
    """A stream without TLS."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    async def read(self) -> bytes:
        """Return what has come; empty at the end."""
        return await asyncio.get_running_loop().sock_recv(self._connection, _CHUNK_BYTES)

    async def write(self, data: bytes) -> None:
        """Send it all."""
        await asyncio.get_running_loop().sock_sendall(self._connection, data)


class TlsStream:
    """A stream inside TLS. `accept` makes one; the owner of the socket closes it."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._socket = SocketStream(connection)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)
        self._sending = asyncio.Lock()

    @classmethod
    async def accept(cls, connection: socket.socket, context: ssl.SSLContext) -> TlsStream:
        """Do the handshake; raise OSError, of which ssl.SSLError is one."""
        first = await SocketStream(connection).read()
        stream = cls(connection, context)
        await stream._shake_hands(first)
        return stream

    @property
    def certificate(self) -> Mapping[str, Any]:
        """The verified certificate of the client, as SSLObject.getpeercert() has it.

        A resumed session has that of its first handshake. Its time was checked only then.
        """
        return self._tls.getpeercert() or {}

    async def read(self) -> bytes:
        """Return what has come; empty at the end."""
        while True:
            try:
                return self._tls.read(_CHUNK_BYTES)
            except ssl.SSLWantReadError:
                await self._flush()  # TLS itself may have to answer, for instance with new keys
                if not await self._fill():
                    return b""

    async def write(self, data: bytes) -> None:
        """Encrypt and send it all."""
        self._tls.write(data)
        await self._flush()

    def say_goodbye(self) -> None:
        """Announce the end of the connection, as far as that is possible without waiting."""
        with contextlib.suppress(ssl.SSLError):  # the client has not announced its own end yet
            self._tls.unwrap()
        self._send_now()

    async def _shake_hands(self, data: bytes) -> None:
        self._received.write(data)
        while data:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._fill()
            except ssl.SSLError:
                self._send_now()  # the alert, which has the reason
                raise
            else:
                await self._flush()
                return
        raise ConnectionResetError("the client disconnected during the handshake")

    async def _fill(self) -> bytes:
        data = await self._socket.read()
        self._received.write(data)
        return data

    async def _flush(self) -> None:
        async with self._sending:  # records must not overtake each other
            if data := self._to_send.read():
                await self._socket.write(data)

    def _send_now(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(self._to_send.read())
