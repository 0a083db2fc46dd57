"""Which TLS connections reach the agent's service, and how long they stay."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.identities import AGENT_NAME
from latencyprobe.process.tls_stream import TlsStream
from latencyprobe_agent.serving import tls_proxy
from latencyprobe_agent.serving.tls import RenewedContext
from latencyprobe_agent.serving.tls_proxy import TlsRefusal
from tests.unit.agent.proxied import Proxied, issue_for, proxied, write_files
from tests.unit.agent.running import until
from tests.unit.failing_accept import REASON, fail_to_accept

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
async def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxied]:
    monkeypatch.setattr(tls_proxy, "_CHECK_S", 0.01)
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


HELLO = b"\x16"  # the first byte of a TLS handshake


def begin_handshake(stack: contextlib.ExitStack, port: int, source: str) -> socket.socket:
    """Connect from this address and send the first byte."""
    connection = stack.enter_context(
        socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    )
    connection.sendall(HELLO)
    return connection


async def test_a_cancelled_handshake_leaves_nothing_in_memory(
    proxy: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "MAX_HANDSHAKES", 2)
    streams: weakref.WeakSet[TlsStream] = weakref.WeakSet()
    begun = asyncio.Semaphore(0)
    initialise = TlsStream.__init__

    def begin(stream: TlsStream, *arguments: Any) -> None:
        streams.add(stream)
        initialise(stream, *arguments)
        begun.release()

    monkeypatch.setattr(TlsStream, "__init__", begin)
    gc.disable()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                begin_handshake(stack, proxy.port, "127.0.0.1")
                async with asyncio.timeout(10):
                    await begun.acquire()
            await until(lambda: len(streams) == 2, "the end of the cancelled ones")
            assert proxy.count(TlsRefusal.CROWDED) == 8
    finally:
        gc.enable()


async def test_a_flood_from_one_address_cancels_none_but_its_own_handshakes(
    proxy: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "MAX_HANDSHAKES", 4)
    with contextlib.ExitStack() as stack:
        quiet = begin_handshake(stack, proxy.port, "127.0.0.2")
        for _ in range(20):
            begin_handshake(stack, proxy.port, "127.0.0.1")
        await until(lambda: proxy.count(TlsRefusal.CROWDED) == 17, "the end of the surplus")
        quiet.setblocking(False)
        with pytest.raises(BlockingIOError):
            quiet.recv(1)


async def test_any_amount_of_data_passes_in_both_directions_at_once(proxy: Proxied) -> None:
    text = bytes(range(256)) * (1 << 13)
    async with proxy.client(proxy.operator) as client:
        client.writer.write(text)
        async with asyncio.timeout(30):
            assert await client.reader.readexactly(len(text)) == text


async def test_a_connection_ends_with_its_certificate(
    proxy: Proxied, caplog: pytest.LogCaptureFixture
) -> None:
    ending = issue_for(proxy.authority, NOW - HOUR, NOW + HOUR)
    async with proxy.client(ending) as client, proxy.client(proxy.operator) as other:
        assert await client.answer() == b"hello"
        proxy.clock[0] = (NOW + 2 * HOUR).timestamp()
        assert await client.end() == b""
        assert await other.answer() == b"hello"
    assert proxy.count(TlsRefusal.EXPIRED) == 1
    assert "the certificate has expired" in caplog.text


async def test_connections_end_when_the_authority_is_replaced(proxy: Proxied) -> None:
    stolen = proxy.operator
    async with proxy.client(stolen) as client:
        assert await client.answer() == b"hello"
        proxy.authority = Authority()
        write_files(proxy.directory, proxy.authority)
        assert await client.end() == b""
    async with proxy.client(proxy.operator) as client:
        assert await client.answer() == b"hello"
    async with proxy.client(stolen) as client:
        assert await client.answer() == b""
    assert proxy.count(TlsRefusal.FOREIGN) == 1


async def test_connections_stay_while_new_files_do_not_match(
    proxy: Proxied, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = asyncio.Semaphore(0)
    current = RenewedContext.current

    def check(context: RenewedContext) -> ssl.SSLContext:
        checks.release()
        return current(context)

    async with proxy.client(proxy.operator) as client:
        (proxy.directory / "tls.key").write_bytes(proxy.operator.key_pem)
        monkeypatch.setattr(RenewedContext, "current", check)
        async with asyncio.timeout(10):
            for _ in range(3):
                await checks.acquire()
        assert await client.answer() == b"hello"
    assert caplog.text.count("keeping the old certificates") == 1


async def test_without_an_idle_connection_a_new_one_is_refused(
    proxy: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "MAX_CONNECTIONS", 1)
    async with proxy.client(proxy.operator) as busy:
        assert await busy.answer() == b"hello"
        (connection,) = proxy.proxy._connections.values()
        connection.begin_call()
        async with proxy.client(proxy.operator) as other:
            assert await other.end() == b""
        assert await busy.answer() == b"hello"
        connection.end_call()
        async with proxy.client(proxy.operator) as other:
            assert await other.answer() == b"hello"
        assert await busy.end() == b""
    assert proxy.count(TlsRefusal.CROWDED) == 2


async def test_a_lack_of_descriptors_is_logged_once_and_then_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "_ACCEPT_RETRY_S", 0.0)
    failures = fail_to_accept(monkeypatch, times=100)
    async with proxied(tmp_path) as running, running.client(running.operator) as client:
        assert await client.answer() == b"hello"

    assert failures == []
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot accept a connection: {REASON}"
    ]
