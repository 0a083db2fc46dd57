"""Which TLS connections reach the agent's service, and how long they stay."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from latencyprobe.protocol.measurements import AGENT_NAME
from latencyprobe_agent.serving.tls_proxy import TlsRefusal
from tests.unit.agent.proxied import Proxied, issue_for, proxied
from tests.unit.agent.running import until

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxied]:
    async with proxied(tmp_path) as running:
        yield running


async def test_the_operator_is_answered(proxy: Proxied) -> None:
    async with proxy.client(proxy.operator) as client:
        assert await client.answer() == b"hello"


@pytest.mark.parametrize(
    "name",
    [AGENT_NAME, "*.latencyprobe.io", "Operator.latencyprobe.io", "x.operator.latencyprobe.io"],
)
async def test_a_client_with_another_name_is_refused_before_a_byte_of_it_is_passed_on(
    proxy: Proxied, name: str
) -> None:
    other = proxy.authority.issue(name, server=True, client=True, days=1)
    async with proxy.client(other) as client:
        client.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert await client.end() == b""
        await until(lambda: proxy.count(TlsRefusal.NAME) == 1, "the refusal")
    assert proxy.inside == []


async def test_a_certificate_of_the_future_is_reported_as_that(
    proxy: Proxied, caplog: pytest.LogCaptureFixture
) -> None:
    early = issue_for(proxy.authority, NOW + HOUR, NOW + 2 * HOUR)
    async with proxy.client(early) as client:
        assert await client.end() == b""
        await until(lambda: proxy.count(TlsRefusal.NOT_YET_VALID) == 1, "the refusal")
    assert "the certificate is not yet valid: check the clocks" in caplog.text
