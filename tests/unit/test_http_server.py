"""The HTTP server of metrics and health: what it answers, and what a client cannot take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from latencyprobe.exposition.page import metrics_page
from latencyprobe.process import http_server
from latencyprobe.process.http_server import (
    MAX_CONNECTIONS,
    HttpServer,
    Page,
    Response,
    ServeError,
    health_page,
    served,
)
from latencyprobe.process.listening import ListenAddress
from tests.patience import patient
from tests.unit.failing_accept import REASON, fail_to_accept

DEADLINE_S = patient(30)
# Never reached: what ends such a connection is not the time.
NEVER_S = 3600.0

LOOPBACK = ListenAddress("127.0.0.1", 0)

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("scrapes", "Counted.", registry=made).inc()
    return made


def broken(_: Mapping[str, str]) -> Response:
    raise ValueError("secret")


PAGES: dict[str, Page] = {
    "/metrics": metrics_page(registry()),
    "/healthz": health_page(),
    "/readyz": health_page(lambda: False),
    "/broken": broken,
}


@contextlib.asynccontextmanager
async def serving(*, exchange_s: float = NEVER_S) -> AsyncIterator[int]:
    """A server's port."""
    server = HttpServer(PAGES, exchange_s=exchange_s)
    bound = await server.start(LOOPBACK)
    try:
        yield bound.port
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer."""
    async with asyncio.timeout(DEADLINE_S), connected(port) as (reader, writer):
        writer.write(request)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head, body


async def get(port: int, path: str, *fields: str) -> tuple[bytes, bytes]:
    lines = [f"GET {path} HTTP/1.1", "Host: x", *fields, "", ""]
    return await ask(port, "\r\n".join(lines).encode())


async def ended(client: Client) -> None:
    """Wait until the server has ended the connection, without an answer."""
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionResetError):
            assert await client[0].read() == b""


async def test_metrics_are_text_unless_a_client_asks_for_another_format() -> None:
    async with serving() as port:
        head, body = await get(port, "/metrics")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/plain; version=" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"scrapes_total 1.0\n" in body


async def test_metrics_are_openmetrics_for_clients_that_accept_it() -> None:
    async with serving() as port:
        head, body = await get(
            port, "/metrics?x=y", "Accept: application/openmetrics-text;version=1.0.0"
        )

    assert b"content-type: application/openmetrics-text" in head.lower()
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/healthz", 200, b"ok\n"),
        ("/readyz", 503, b"not ready\n"),
        ("/", 404, b"/metrics, /healthz, /readyz, /broken\n"),
        ("/broken", 500, b"see the log\n"),
    ],
)
async def test_a_page_has_its_status(path: str, status: int, body: bytes) -> None:
    async with serving() as port:
        head, answered = await get(port, path)

    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert answered == body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (17 << 10), 431),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    ],
    ids=["a method", "TLS", "without a host", "too long", "HTTP/1.0"],
)
async def test_other_requests_are_answered_too(request_: bytes, status: int) -> None:
    async with serving() as port:
        head, _ = await ask(port, request_)

    assert head.startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_head_request_gets_the_head_alone() -> None:
    async with serving() as port:
        head, body = await ask(port, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")

    assert b"content-length: 3" in head.lower()
    assert body == b""


async def test_a_request_may_come_in_pieces() -> None:
    async with asyncio.timeout(DEADLINE_S), serving() as port, connected(port) as (reader, writer):
        for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHo", b"st: x\r\n\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(b"ok\n")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost"], ids=["silent", "slow"])
async def test_a_connection_without_a_whole_request_is_ended(sent: bytes) -> None:
    async with serving(exchange_s=0.05) as port, connected(port) as client:
        client[1].write(sent)
        await ended(client)


async def test_a_client_that_does_not_read_its_answer_is_ended() -> None:
    asked = asyncio.Event()

    def large(_: Mapping[str, str]) -> Response:
        asked.set()
        return Response(b"x" * (64 << 20))

    server = HttpServer({"/large": large}, exchange_s=0.2)
    bound = await server.start(LOOPBACK)
    with socket.socket() as client:
        await asyncio.to_thread(client.connect, ("127.0.0.1", bound.port))
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
            while server._exchanges:
                await asyncio.sleep(0.01)
        await server.close()


async def test_beyond_the_most_connections_the_oldest_ends() -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving())
        clients = [
            await stack.enter_async_context(connected(port)) for _ in range(MAX_CONNECTIONS + 3)
        ]
        for client in clients[:3]:
            await ended(client)
        for reader, writer in clients[3:]:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(DEADLINE_S):
                assert (await reader.read()).endswith(b"ok\n")


async def test_a_scrape_is_answered_while_idle_connections_come() -> None:
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving())
        for _ in range(10):
            for _ in range(2 * MAX_CONNECTIONS):
                await stack.enter_async_context(connected(port))
            assert b"scrapes_total" in (await get(port, "/metrics"))[1]


async def test_a_closed_server_ends_its_connections() -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with serving() as port:
            silent = await clients.enter_async_context(connected(port))
            assert (await get(port, "/healthz"))[1] == b"ok\n"
        await ended(silent)
        with pytest.raises(ConnectionRefusedError):
            await clients.enter_async_context(connected(port))


async def test_it_goes_on_after_it_ran_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(24, "Too many open files")] * 3
    accept = socket.socket.accept

    def failing(listener: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(http_server, "_ACCEPT_RETRY_S", 0)
    monkeypatch.setattr(socket.socket, "accept", failing)
    async with serving() as port:
        assert (await get(port, "/healthz"))[1] == b"ok\n"
    assert not failures


@pytest.mark.parametrize(
    ("listening", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("", "127.0.0.1")]
)
async def test_pages_are_served_on_an_address_of_either_family(listening: str, asked: str) -> None:
    async with served(ListenAddress(listening, 0), PAGES) as bound:
        assert bound is not None
        url = f"http://{bound._replace(host=asked)}/healthz"
        with await asyncio.to_thread(urlopen, url, timeout=DEADLINE_S) as answer:
            assert answer.status == 200


async def test_without_an_address_nothing_is_served() -> None:
    async with served(None, PAGES) as bound:
        assert bound is None


async def test_an_address_that_is_taken_is_reported_with_its_purpose() -> None:
    with socket.create_server(LOOPBACK) as taken:
        port = taken.getsockname()[1]
        message = f"^cannot serve /metrics, .* on 127.0.0.1:{port}: Address already in use"
        with pytest.raises(ServeError, match=message):
            async with served(ListenAddress("127.0.0.1", port), PAGES):
                pass


async def test_a_lack_of_descriptors_is_logged_once_and_then_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_ACCEPT_RETRY_S", 0.0)
    failures = fail_to_accept(monkeypatch, times=100)
    async with serving() as port:
        assert (await get(port, "/healthz"))[1] == b"ok\n"

    assert failures == []
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot accept an HTTP connection: {REASON}"
    ]


async def test_a_page_that_fails_for_each_client_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as port:
        for _ in range(20):
            assert (await get(port, "/broken"))[1] == b"see the log\n"

    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "cannot make the page /broken")
    assert "ValueError: secret" in caplog.text
