"""The right to read metrics: by certificate or token, while health is open to the kubelet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from latencyprobe.commands.pki import Authority
from latencyprobe.process.http_server import Response, health_page, served
from latencyprobe.process.listening import ListenAddress
from latencyprobe_agent.serving.metrics_access import MetricsAccess, MetricsAccessFiles
from latencyprobe_agent.serving.tls import MetricsTlsFiles, TlsFileError
from tests.patience import patient
from tests.unit.agent.resuming import EACH_TLS_VERSION, ResumingClient

NAME = "agent.latencyprobe.io"
TOKEN = "s3cret"
FORBIDDEN = (403, b"a client certificate or a bearer token is needed\n")
METRICS = (200, b"figures\n")
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
SERVERS, CLIENTS, STRANGERS = (Authority(name) for name in ("servers", "clients", "strangers"))


def write_pair(folder: Path, name: str, authority: Authority, *, server: bool) -> tuple[Path, Path]:
    """A certificate of this authority, and its key."""
    credential = authority.issue(NAME, server=server, client=not server, days=1)
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(credential.certificate_pem)
    key.write_bytes(credential.key_pem)
    return certificate, key


@dataclass
class Scraped:
    """A protected server, and its clients."""

    folder: Path
    port: int
    clock: list[float]

    def client_context(self, client: Authority | None) -> ssl.SSLContext:
        """A context of a client with a certificate of this authority."""
        context = ssl.create_default_context(cadata=SERVERS.credential.certificate_pem.decode())
        context.check_hostname = False
        if client is not None:
            context.load_cert_chain(*write_pair(self.folder, "client", client, server=False))
        return context

    async def get(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        client: Authority | None = None,
    ) -> tuple[int, bytes]:
        """The status and the body."""
        request = Request(f"https://127.0.0.1:{self.port}{path}", headers=dict(headers or {}))
        return await asyncio.to_thread(_get, request, self.client_context(client))


def _get(request: Request, context: ssl.SSLContext) -> tuple[int, bytes]:
    try:
        with urlopen(request, timeout=patient(20), context=context) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def files(tmp_path: Path) -> MetricsAccessFiles:
    """Every kind of file."""
    client_ca, token = tmp_path / "ca.crt", tmp_path / "token"
    client_ca.write_bytes(CLIENTS.credential.certificate_pem)
    token.write_text(f"{TOKEN}\n")
    pair = write_pair(tmp_path, "agent", SERVERS, server=True)
    return MetricsAccessFiles(MetricsTlsFiles(*pair, client_ca), token)


@contextlib.asynccontextmanager
async def scraped(files: MetricsAccessFiles, folder: Path) -> AsyncIterator[Scraped]:
    pages = {"/metrics": lambda _: Response(b"figures\n"), "/healthz": health_page()}
    clock = [time.time()]
    access = MetricsAccess(files, clock=lambda: clock[0])
    async with served(ListenAddress("127.0.0.1", 0), pages, access) as bound:
        assert bound is not None
        yield Scraped(folder, bound.port, clock)


async def test_metrics_are_for_those_with_a_certificate_or_a_token(
    files: MetricsAccessFiles, tmp_path: Path
) -> None:
    async with scraped(files, tmp_path) as server:
        assert await server.get("/metrics") == FORBIDDEN
        assert await server.get("/metrics", client=CLIENTS) == METRICS
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {TOKEN}"}
            assert await server.get("/metrics", headers=headers) == METRICS


@EACH_TLS_VERSION
@pytest.mark.parametrize("days", [2, -2], ids=["expired", "not yet valid"])
async def test_a_certificate_outside_its_validity_opens_nothing(
    files: MetricsAccessFiles, tmp_path: Path, version: ssl.TLSVersion, days: int
) -> None:
    async with scraped(files, tmp_path) as server:
        client = ResumingClient(server.port, server.client_context(CLIENTS), version)
        assert (await client.ask(REQUEST)).endswith(b"figures\n")
        server.clock[0] += 86400 * days
        for _ in range(3):
            assert (await client.ask(REQUEST)).startswith(b"HTTP/1.1 403 ")


@EACH_TLS_VERSION
async def test_no_tls_ticket_is_issued(
    files: MetricsAccessFiles, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    async with scraped(files, tmp_path) as server:
        client = ResumingClient(server.port, server.client_context(CLIENTS), version)
        for _ in range(2):
            assert (await client.ask(REQUEST)).endswith(b"figures\n")
    assert client.session is not None
    assert not client.session.has_ticket
    assert client.resumed == [False, version is ssl.TLSVersion.TLSv1_2]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9",
        f"Bearer  x{TOKEN}",
    ],
)
async def test_another_token_opens_nothing(
    files: MetricsAccessFiles, tmp_path: Path, authorization: str
) -> None:
    async with scraped(files, tmp_path) as server:
        answer = await server.get("/metrics", headers={"Authorization": authorization})
        assert answer == FORBIDDEN


async def test_health_is_open_to_a_client_without_either(
    files: MetricsAccessFiles, tmp_path: Path
) -> None:
    async with scraped(files, tmp_path) as server:
        assert await server.get("/healthz") == (200, b"ok\n")


async def test_a_certificate_of_another_authority_is_no_handshake(
    files: MetricsAccessFiles, tmp_path: Path
) -> None:
    async with scraped(files, tmp_path) as server:
        with pytest.raises(OSError, match=r"(?i)unknown ca|reset|eof|alert"):
            await server.get("/metrics", client=STRANGERS)
        assert await server.get("/metrics", client=CLIENTS) == METRICS


async def test_without_a_ca_a_certificate_opens_nothing(
    files: MetricsAccessFiles, tmp_path: Path
) -> None:
    tls = MetricsTlsFiles(files.tls.certificate, files.tls.key)
    async with scraped(MetricsAccessFiles(tls, files.token), tmp_path) as server:
        assert await server.get("/metrics", client=CLIENTS) == FORBIDDEN


async def test_tls_alone_is_for_everyone(files: MetricsAccessFiles, tmp_path: Path) -> None:
    tls = MetricsTlsFiles(files.tls.certificate, files.tls.key)
    async with scraped(MetricsAccessFiles(tls), tmp_path) as server:
        assert await server.get("/metrics") == METRICS


async def test_a_new_token_replaces_the_old_one(files: MetricsAccessFiles, tmp_path: Path) -> None:
    assert files.token is not None
    async with scraped(files, tmp_path) as server:
        files.token.write_text("another")
        assert (
            await server.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}) == FORBIDDEN
        )
        assert await server.get("/metrics", headers={"Authorization": "Bearer another"}) == METRICS


@pytest.mark.parametrize("content", [None, "", "\n"])
async def test_a_missing_or_empty_token_opens_nothing(
    files: MetricsAccessFiles, tmp_path: Path, content: str | None
) -> None:
    assert files.token is not None
    async with scraped(files, tmp_path) as server:
        if content is None:
            files.token.unlink()
        else:
            files.token.write_text(content)
        for shown in ("Bearer ", "Bearer", f"Bearer {TOKEN}"):
            assert await server.get("/metrics", headers={"Authorization": shown}) == FORBIDDEN


async def test_a_renewed_certificate_is_shown(files: MetricsAccessFiles, tmp_path: Path) -> None:
    async with scraped(files, tmp_path) as server:
        for _ in range(2):
            renewed = tmp_path / "renewed"
            renewed.mkdir(exist_ok=True)
            for path in write_pair(renewed, "agent", SERVERS, server=True):
                os.replace(path, tmp_path / path.name)
            shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", server.port))
            assert shown == (tmp_path / "agent.crt").read_text()


async def test_a_client_without_tls_gets_nothing(files: MetricsAccessFiles, tmp_path: Path) -> None:
    async with scraped(files, tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(patient(20)):
            answer = await reader.read()
        writer.close()
        assert b"figures" not in answer


def test_unusable_files_are_named(files: MetricsAccessFiles) -> None:
    assert files.tls.client_ca is not None
    files.tls.client_ca.write_text("no certificate")
    with pytest.raises(TlsFileError, match=r"ca\.crt is not a PEM certificate"):
        MetricsAccess(files)
