"""HTTP for metrics and health, on a port that strangers may reach.

h11 reads and writes HTTP; this module limits the resources of a client. A connection carries one
exchange and ends within a few seconds. The number of connections is limited, and a new one beyond
the limit ends the oldest. A scrape or a health check sends its request at once, and so is answered
before that. A flood of idle connections only ends itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import h11

from latencyprobe.process.listening import ListenAddress, listen
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe.process.tls_stream import ByteStream, SocketStream, TlsStream

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
EXCHANGE_S = 5.0
_HEAD_BYTES = 16 << 10
_ACCEPT_RETRY_S = 0.1
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to one request."""

    body: bytes
    status: int = HTTPStatus.OK
    content_type: str = _PLAIN


# From the request's header fields, by names in lower case.
Page = Callable[[Mapping[str, str]], Response]


class Protection(Protocol):
    """TLS, and a decision about each request."""

    def context(self) -> ssl.SSLContext:
        """Return the context of the next connection."""

    def refusal(
        self, path: str, headers: Mapping[str, str], certificate: Mapping[str, Any]
    ) -> Response | None:
        """Return the answer to a client that may not read a page; None to the others.

        `certificate`: `TlsStream.certificate`. A resumed session's may have expired.
        """


class ServeError(Exception):
    """An error of listening on an address."""

    def __init__(self, address: ListenAddress, pages: Iterable[str], error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(f"cannot serve {', '.join(pages)} on {address}: {reason}")


def health_page(is_healthy: Callable[[], bool] = lambda: True) -> Page:
    """Return a page with status 200 if the process is healthy, and 503 if not."""

    def page(_: Mapping[str, str]) -> Response:
        if is_healthy():
            return Response(b"ok\n")
        return Response(b"not ready\n", HTTPStatus.SERVICE_UNAVAILABLE)

    return page


@contextlib.asynccontextmanager
async def served(
    address: ListenAddress | None, pages: Mapping[str, Page], protection: Protection | None = None
) -> AsyncIterator[ListenAddress | None]:
    """Serve pages for the time of the block, or nothing without an address.

    Gives the address with the port that the kernel chose for 0. Raises ServeError.
    """
    if address is None:
        yield None
        return
    server = HttpServer(pages, protection=protection)
    try:
        bound = await server.start(address)
    except OSError as error:
        raise ServeError(address, pages, error) from None
    try:
        yield bound
    finally:
        await server.close()


class HttpServer:
    """Answers GET and HEAD of some pages, by path, from `start` to `close`.

    `protection`: None for HTTP without TLS, for everyone.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        *,
        exchange_s: float = EXCHANGE_S,
        protection: Protection | None = None,
    ) -> None:
        self._pages = dict(pages)
        self._protection = protection
        self._exchange_s = exchange_s
        self._exchanges: dict[asyncio.Task[None], socket.socket] = {}  # oldest first
        self._accepting: asyncio.Task[None] | None = None
        self._lines = RepeatedLines(log)

    async def start(self, address: ListenAddress) -> ListenAddress:
        """Listen, and return the address, whose port the kernel chooses for 0. Raises OSError."""
        listener = listen(address.host, address.port)
        listener.setblocking(False)
        bound = ListenAddress(address.host, listener.getsockname()[1])
        self._accepting = asyncio.create_task(self._accept(listener))
        self._accepting.add_done_callback(lambda _: listener.close())
        return bound

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        tasks = [*([self._accepting] if self._accepting else []), *self._exchanges]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or aborted by the client
                self._lines.note("accept", f"cannot accept an HTTP connection: {error}")
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            # Begun before the wait below, so that a cancellation there closes the connection.
            self._begin(connection)
            if len(self._exchanges) > MAX_CONNECTIONS:
                await self._end_oldest()
            # While more connections are pending, accepting does not yield; this lets the rest of
            # the process run between two of them.
            await asyncio.sleep(0)

    def _begin(self, connection: socket.socket) -> None:
        task = asyncio.create_task(self._exchange(connection))
        self._exchanges[task] = connection
        # Also where the task is cancelled before it runs.
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._exchanges.pop(task).close()

    async def _end_oldest(self) -> None:
        oldest = next(iter(self._exchanges))
        oldest.cancel()
        await asyncio.wait({oldest})

    async def _exchange(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._exchange_s):
                if self._protection is None:
                    await self._serve(SocketStream(connection), {})
                    return
                stream = await TlsStream.accept(connection, self._protection.context())
                await self._serve(stream, stream.certificate)
                stream.say_goodbye()
        except OSError as error:  # TimeoutError and ssl.SSLError are some
            log.debug("an HTTP connection broke off: %r", error)

    async def _serve(self, stream: ByteStream, certificate: Mapping[str, Any]) -> None:
        await stream.write(await self._answer(stream, certificate))

    async def _answer(self, stream: ByteStream, certificate: Mapping[str, Any]) -> bytes:
        """Read a request and return the bytes of its answer; none if the client disconnects."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await stream.read())
        except h11.RemoteProtocolError as error:
            return _written(http, Response(f"{error}\n".encode(), error.error_status_hint))
        if not isinstance(event, h11.Request):
            return b""
        body = event.method != b"HEAD"
        response = self._respond(event, certificate)
        return _written(http, response, with_body=body)

    def _respond(self, request: h11.Request, certificate: Mapping[str, Any]) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return Response(b"GET only\n", HTTPStatus.METHOD_NOT_ALLOWED)
        path = request.target.partition(b"?")[0].decode("ascii", errors="replace")
        page = self._pages.get(path)
        if page is None:
            return Response(f"{', '.join(self._pages)}\n".encode(), HTTPStatus.NOT_FOUND)
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        if self._protection is not None:
            refusal = self._protection.refusal(path, headers, certificate)
            if refusal is not None:
                return refusal
        try:
            return page(headers)
        except Exception as error:  # noqa: BLE001 - logged
            text = f"cannot make the page {path}"
            self._lines.note("page", text, level=logging.ERROR, error=error)
            return Response(b"see the log\n", HTTPStatus.INTERNAL_SERVER_ERROR)


def _written(http: h11.Connection, response: Response, *, with_body: bool = True) -> bytes:
    head = h11.Response(
        status_code=response.status,
        reason=HTTPStatus(response.status).phrase,
        headers=[
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Connection", "close"),
        ],
    )
    events: list[h11.Event] = [head, h11.EndOfMessage()]
    if with_body:
        events.insert(1, h11.Data(data=response.body))
    return b"".join(filter(None, map(http.send, events)))
