"""A TLS proxy before a server that echoes, and clients with certificates of any kind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.process.listening import listen
from latencyprobe_agent.serving.tls import RenewedContext, ServerTlsFiles
from latencyprobe_agent.serving.tls_proxy import RefusalLog, TlsProxy, TlsRefusal


def issue_for(authority: Authority, begin: datetime.datetime, end: datetime.datetime) -> Credential:
    """Sign an operator's certificate that is valid between these two times."""
    key = ec.generate_private_key(ec.SECP256R1())
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.credential.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(OPERATOR_NAME)]), critical=False)
        .sign(authority.credential.key, hashes.SHA256())
    )
    return Credential(signed, key)


def write_files(directory: Path, authority: Authority) -> ServerTlsFiles:
    """Write an agent's certificate as the kubelet does: a new file takes the old one's place."""
    credential = authority.issue(AGENT_NAME, server=True, client=False, days=1)
    files = ServerTlsFiles(directory / "ca.crt", directory / "tls.crt", directory / "tls.key")
    for path, text in (
        (files.ca, authority.credential.certificate_pem),
        (files.certificate, credential.certificate_pem),
        (files.key, credential.key_pem),
    ):
        new = path.with_suffix(".new")
        new.write_bytes(text)
        new.replace(path)
    return files


@dataclass
class Client:
    """A TLS connection to the proxy."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self, text: bytes = b"hello") -> bytes:
        """Send a text and return what comes back; empty if the connection has ended."""
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                self.writer.write(text)
                return await self.reader.read(len(text))
        return b""

    async def end(self) -> bytes:
        """Wait for the end of the connection; return what was received until then."""
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                return await self.reader.read()
        return b""


@dataclass
class Proxied:
    """A proxy with an echo behind it, and what became of its clients."""

    directory: Path
    authority: Authority
    proxy: TlsProxy
    port: int
    refused: Counter[str]
    clock: list[float]
    inside: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def operator(self) -> Credential:
        return self.authority.issue(OPERATOR_NAME, server=False, client=True, days=1)

    def client_context(self, credential: Credential) -> ssl.SSLContext:
        """A context of a client with this certificate."""
        context = ssl.create_default_context(
            cadata=self.authority.credential.certificate_pem.decode()
        )
        context.set_alpn_protocols(["h2"])
        path = self.directory / "client.pem"
        path.write_bytes(credential.certificate_pem + credential.key_pem)
        context.load_cert_chain(path)
        return context

    @contextlib.asynccontextmanager
    async def client(self, credential: Credential) -> AsyncIterator[Client]:
        """Connect with this certificate. The handshake succeeds even for one that is refused."""
        context = self.client_context(credential)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=context, server_hostname=AGENT_NAME
        )
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    def count(self, refusal: TlsRefusal) -> int:
        """The number of clients that were refused for this reason."""
        return self.refused[refusal]


@contextlib.asynccontextmanager
async def proxied(directory: Path) -> AsyncIterator[Proxied]:
    """Run a proxy with an echo behind it."""
    authority = Authority()
    refused: Counter[str] = Counter()
    inner = directory / "inner"
    context = RenewedContext(write_files(directory, authority))
    refusals = RefusalLog(lambda reason: refused.update([reason]))
    clock = [time.time()]
    proxy = TlsProxy(context, inner, OPERATOR_NAME, refusals, clock=lambda: clock[0])
    listener = listen("127.0.0.1", 0)
    running = Proxied(directory, authority, proxy, listener.getsockname()[1], refused, clock)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.inside.append(writer)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while text := await reader.read(1 << 16):
                writer.write(text)

    server = await asyncio.start_unix_server(echo, inner)
    proxy.start(listener)
    try:
        yield running
    finally:
        await proxy.close()
        server.close()
