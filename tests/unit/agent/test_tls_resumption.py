"""A resumed TLS session, whose certificate is not verified again, opens nothing to its client."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe_agent.serving import tls_proxy
from latencyprobe_agent.serving.tls_proxy import TlsRefusal
from tests.unit.agent.proxied import Proxied, issue_for, proxied, write_files
from tests.unit.agent.resuming import EACH_TLS_VERSION, ResumingClient
from tests.unit.agent.running import until

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxied]:
    """A proxy that does not check its open connections: a client is refused at once or never."""
    monkeypatch.setattr(tls_proxy, "_CHECK_S", 3600.0)
    async with proxied(tmp_path) as running:
        yield running


def resuming(proxy: Proxied, credential: Credential, version: ssl.TLSVersion) -> ResumingClient:
    return ResumingClient(proxy.port, proxy.client_context(credential), version)


@EACH_TLS_VERSION
async def test_no_ticket_is_issued(proxy: Proxied, version: ssl.TLSVersion) -> None:
    client = resuming(proxy, proxy.operator, version)

    assert [await client.ask(b"hello") for _ in range(2)] == [b"hello", b"hello"]

    assert client.session is not None
    assert not client.session.has_ticket
    # What remains are the session IDs of TLS 1.2.
    assert client.resumed == [False, version is ssl.TLSVersion.TLSv1_2]


@EACH_TLS_VERSION
@pytest.mark.parametrize(
    ("later", "refusal"),
    [(2 * HOUR, TlsRefusal.EXPIRED), (-2 * HOUR, TlsRefusal.NOT_YET_VALID)],
    ids=["expired", "not yet valid"],
)
async def test_a_certificate_outside_its_validity_is_refused(
    proxy: Proxied, version: ssl.TLSVersion, later: datetime.timedelta, refusal: TlsRefusal
) -> None:
    client = resuming(proxy, issue_for(proxy.authority, NOW - HOUR, NOW + HOUR), version)
    assert await client.ask(b"hello") == b"hello"

    proxy.clock[0] = (NOW + later).timestamp()

    assert [await client.ask(b"hello") for _ in range(3)] == [b""] * 3
    await until(lambda: proxy.count(refusal) == 3, "the refusals")
    assert len(proxy.inside) == 1


@EACH_TLS_VERSION
async def test_a_session_ends_with_the_authority(proxy: Proxied, version: ssl.TLSVersion) -> None:
    client = resuming(proxy, proxy.operator, version)
    assert await client.ask(b"hello") == b"hello"

    proxy.authority = Authority()
    write_files(proxy.directory, proxy.authority)
    client.context.load_verify_locations(cadata=proxy.authority.credential.certificate_pem.decode())
    assert await client.ask(b"hello") == b""
    await until(lambda: proxy.count(TlsRefusal.FOREIGN) == 1, "the refusal")
    assert len(proxy.inside) == 1


@EACH_TLS_VERSION
async def test_a_session_has_the_name_of_its_certificate(
    proxy: Proxied, version: ssl.TLSVersion
) -> None:
    other = proxy.authority.issue(AGENT_NAME, server=True, client=True, days=1)
    client = resuming(proxy, other, version)

    assert [await client.ask(b"hello") for _ in range(3)] == [b""] * 3
    await until(lambda: proxy.count(TlsRefusal.NAME) == 3, "the refusals")
    assert proxy.inside == []
