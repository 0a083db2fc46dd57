"""A TLS client that resumes the session of its connection before, where the server allows that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from latencyprobe.domain.identities import AGENT_NAME
from tests.patience import patient

EACH_TLS_VERSION = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)


class ResumingClient:
    """A client with one version of TLS. `resumed`: for each connection, if it was by a session."""

    def __init__(self, port: int, context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
        context.minimum_version = context.maximum_version = version
        self.context = context
        self._port = port
        self.session: ssl.SSLSession | None = None
        self.resumed: list[bool | None] = []

    async def ask(self, text: bytes) -> bytes:
        """Send a text on a new connection, and return the answer; empty where it was refused."""
        return await asyncio.to_thread(self._ask, text)

    def _ask(self, text: bytes) -> bytes:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=patient(20))
        with (
            plain,
            contextlib.suppress(OSError),
            self.context.wrap_socket(
                plain, server_hostname=AGENT_NAME, session=self.session
            ) as tls,
        ):
            self.resumed.append(tls.session_reused)
            self.session = tls.session
            tls.sendall(text)
            answer = tls.recv(1 << 16)
            self.session = tls.session  # in TLS 1.3, a ticket comes after the handshake
            with contextlib.suppress(OSError):
                tls.unwrap()  # else the server forgets a session of TLS 1.2
            return answer
        return b""
