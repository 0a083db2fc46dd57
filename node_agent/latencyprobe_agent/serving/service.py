"""The gRPC service of the agent: authorisation of callers, and errors as gRPC statuses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from latencyprobe.process.listening import listen
from latencyprobe.process.os_errors import explained, is_transient
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe.process.tasks import Spawn, spawn
from latencyprobe.process.temporary import temporary_folder
from latencyprobe.protocol.measurements import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc
from latencyprobe_agent.agent import Agent, ShuttingDownError, StaleGenerationError
from latencyprobe_agent.desired import InvalidStateError
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.lease import StaleTermError, StreamEndedError
from latencyprobe_agent.serving.messages import apply_result, node_info, trace_events
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.reports import ReportPump
from latencyprobe_agent.serving.requests import parse_desired, parse_trace
from latencyprobe_agent.serving.tls import RenewedContext, ServerTlsFiles
from latencyprobe_agent.serving.tls_proxy import RefusalLog, TlsProxy
from latencyprobe_agent.tracing import TraceBusyError

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[object, object]

log = logging.getLogger(__name__)

SERVICE = "latencyprobe.v1.NodeAgent"
_GRACE_S = 2.0
_MAX_RPCS = 64
_MAX_SOCKET_PATH = 107  # sun_path, include/uapi/linux/un.h, and its NUL

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", _MAX_RPCS),
    # A client that vanished without closing (its node died) is detected within 30 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And clients may ping as often, but not more.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 3),
)

_Answer = TypeVar("_Answer")


class ListenError(Exception):
    """An address that cannot be listened on. The message says why."""


class Caller:
    """Authorisation of callers.

    Over TCP, the TLS proxy has checked certificate and name before any byte reaches gRPC. A call
    that did not come through the proxy is refused. On a Unix socket, the permission to open it is
    enough.
    """

    def __init__(self, proxy: TlsProxy | None = None) -> None:
        self._proxy = proxy

    @property
    def is_local(self) -> bool:
        """True for callers on a Unix socket, who may measure anything on this machine."""
        return self._proxy is None

    async def check(self, context: Context) -> None:
        """End the call with PERMISSION_DENIED unless the caller is authorised."""
        if self._proxy is None:
            return
        connection = self._proxy.connection(context.peer())
        if connection is None:
            await _abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "the call did not come through the TLS port",
            )
        connection.begin_call()
        # The stubs take an instance of a class that does not exist.
        context.add_done_callback(lambda _: connection.end_call())  # type: ignore[arg-type]

    def describe(self, context: Context) -> str:
        """Return the caller for the log; a Unix socket's client has no address."""
        connection = self._proxy.connection(context.peer()) if self._proxy else None
        return connection.address if connection else "the local client"


class NodeAgentService(node_agent_pb2_grpc.NodeAgentServicer):
    """The service of `node_agent.proto`."""

    def __init__(self, agent: Agent, caller: Caller, metrics: AgentMetrics) -> None:
        self._agent = agent
        self._caller = caller
        self._metrics = metrics
        self._lines = RepeatedLines(log)

    async def GetNodeInfo(  # noqa: N802  (the protocol's name)
        self,
        request: pb.GetNodeInfoRequest,  # noqa: ARG002  (gRPC passes it)
        context: Context,
    ) -> pb.NodeInfo:
        """Return the facts on this node."""
        await self._caller.check(context)

        async def answer() -> pb.NodeInfo:
            return node_info(self._agent)

        return await self._guard(answer, context)

    async def Apply(  # noqa: N802
        self, request: pb.DesiredState, context: Context
    ) -> pb.ApplyResult:
        """Replace the desired state."""
        await self._caller.check(context)

        async def answer() -> pb.ApplyResult:
            desired = parse_desired(request, only_containers=not self._caller.is_local)
            return apply_result(await self._agent.apply(desired))

        return await self._guard(answer, context)

    async def WatchReports(  # type: ignore[override]  # noqa: N802  (writes, yields nothing)
        self,
        request_iterator: AsyncIterator[pb.WatchReportsRequest],
        context: Context,
    ) -> None:
        """Report until the client disconnects. `write` waits while the client is slow."""
        await self._caller.check(context)
        if not self._caller.is_local:
            # Half the bytes, and an operator of thousands of agents keeps smaller read buffers.
            context.set_compression(grpc.Compression.Gzip)
        self._note_call(context, "streams reports")

        async def pump(send: Callable[[pb.Report], Awaitable[None]]) -> None:
            opening = await anext(request_iterator, pb.WatchReportsRequest())
            count = self._metrics.reports.inc
            reports = ReportPump(self._agent, count, send, request_iterator)
            await self._agent.watch(opening.term, reports.run)

        await self._guard(lambda: _stream(pump, context), context)

    async def Trace(  # type: ignore[override]  # noqa: N802  (writes, yields nothing)
        self, request: pb.TraceRequest, context: Context
    ) -> None:
        """Report packets until the probe ends or the client disconnects."""
        await self._caller.check(context)
        self._note_call(context, "traces packets")

        async def answer() -> None:
            wish = parse_trace(request)

            async def pump(send: Callable[[pb.TraceEvents], Awaitable[None]]) -> None:
                await self._agent.trace(wish, lambda news: send(trace_events(news)))

            await _stream(pump, context)

        await self._guard(answer, context)

    def _note_call(self, context: Context, action: str) -> None:
        """Log the call of a client; it may repeat it in a loop."""
        text = f"{self._caller.describe(context)} {action}"
        self._lines.note(action, text, level=logging.INFO)

    async def _guard(self, answer: Callable[[], Awaitable[_Answer]], context: Context) -> _Answer:
        """Return the answer, or end the call with the status of its error."""
        try:
            return await answer()
        except InvalidStateError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StaleTermError as error:
            self._lines.note("term", f"{self._caller.describe(context)}: {error}")
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except StaleGenerationError as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except TraceBusyError as error:
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except ShuttingDownError as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
        except StreamEndedError as error:
            code = grpc.StatusCode.ABORTED if error.superseded else grpc.StatusCode.UNAVAILABLE
            await _abort(context, code, str(error))
        except EngineError as error:
            self._lines.note("engine", str(error))
            await _abort(context, grpc.StatusCode.INTERNAL, str(error))
        except grpc.aio.BaseError:
            raise
        except Exception as error:  # noqa: BLE001 - logged
            text = f"unexpected error in a call of {self._caller.describe(context)}"
            self._lines.note("unexpected", text, level=logging.ERROR, error=error)
            await _abort(
                context,
                grpc.StatusCode.INTERNAL,
                f"unexpected {type(error).__name__}: {error}"[:500],
            )


async def _stream(
    pump: Callable[[Callable[[Any], Awaitable[None]]], Awaitable[None]], context: Context
) -> None:
    """Let `pump` write to the client; return when none of its messages is being sent.

    The first message carries the call's metadata. A status sent before it is gone carries them too:
    gRPC then refuses the status (TOO_MANY_OPERATIONS), and the client would wait for ever.
    """
    last: asyncio.Future[None] | None = None

    async def send(message: object) -> None:
        nonlocal last
        last = asyncio.ensure_future(context.write(message))
        await asyncio.shield(last)

    try:
        await pump(send)
    finally:
        if last is not None:
            await asyncio.wait({last}, timeout=_GRACE_S)


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort always raises")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address for mutual TLS, and the name of its only client."""

    address: str
    files: ServerTlsFiles
    operator_name: str


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A Unix socket, for the local command."""

    path: Path


class Server:
    """A server of an agent, until it is stopped."""

    def __init__(
        self,
        agent: Agent,
        address: TcpAddress | SocketAddress,
        metrics: AgentMetrics | None = None,
        spawn: Spawn = spawn,
    ) -> None:
        """Serve nothing yet. `spawn`: begins a task that must not fail."""
        self._agent = agent
        self._address = address
        self._metrics = metrics or AgentMetrics()
        self._spawn = spawn
        self._refusals = RefusalLog(self._metrics.count_refusal)
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_RPCS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._proxy: TlsProxy | None = None
        self._folder = contextlib.ExitStack()
        self.is_serving = False

    async def start(self) -> str:
        """Listen; return the address, with the chosen port for port 0.

        Raises ListenError and TlsFileError.
        """
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        if isinstance(self._address, TcpAddress):
            bound = await self._start_behind_proxy(self._address)
        else:
            self._add_service(Caller())
            bound = _bind_socket(self._server, self._address.path)
            await self._server.start()
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        self.is_serving = True
        return bound

    async def drain(self) -> None:
        """Report NOT_SERVING before anything is shut down."""
        self.is_serving = False
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self) -> None:
        """End pending calls, and stop listening."""
        await self._server.stop(_GRACE_S)
        if self._proxy is not None:
            await self._proxy.close()
        self._folder.close()
        if isinstance(self._address, SocketAddress):
            self._address.path.unlink(missing_ok=True)

    async def _start_behind_proxy(self, address: TcpAddress) -> str:
        context = RenewedContext(address.files)
        host, _, port = address.address.rpartition(":")
        try:
            listener = listen(host.strip("[]"), int(port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenError(f"cannot listen on {address.address}: {reason}") from None
        try:
            inner = self._folder.enter_context(temporary_folder("agent")) / "grpc"
            self._proxy = TlsProxy(context, inner, address.operator_name, self._refusals)
            self._add_service(Caller(self._proxy))
            _bind_socket(self._server, inner)
            await self._server.start()
        except (OSError, ListenError) as error:
            listener.close()
            raise ListenError(f"cannot create the internal socket: {error}") from None
        self._proxy.start(listener, self._spawn)
        return f"{host}:{listener.getsockname()[1]}"

    def _add_service(self, caller: Caller) -> None:
        node_agent_pb2_grpc.add_NodeAgentServicer_to_server(
            NodeAgentService(self._agent, caller, self._metrics), self._server
        )

    async def _say(self, status: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _bind_socket(server: grpc.aio.Server, path: Path) -> str:
    _check_socket_path(path)
    _make_private_directory(path.parent)
    _remove_stale(path)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {path}: {error}") from None
    finally:
        os.umask(before)
    path.chmod(0o600)
    return str(path)


def _check_socket_path(path: Path) -> None:
    if not path.is_absolute():
        raise ListenError(f"cannot listen on {path}: give an absolute path")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ListenError(
            f"cannot listen on {path}: the path is longer than {_MAX_SOCKET_PATH} bytes"
        )


def _make_private_directory(directory: Path) -> None:
    """Make the socket's directory, for us alone: access to the socket is control of the agent."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise ListenError(f"cannot create {directory}: {error.strerror}") from None
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ListenError(
            f"{directory} is accessible to other users: give a directory with mode 0700"
        )


def _remove_stale(path: Path) -> None:
    """Remove a dead agent's socket; raise ListenError if an agent listens, or it is no socket."""
    if not path.exists():
        return
    if not path.is_socket():
        raise ListenError(f"cannot listen on {path}: it exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(1)
        try:
            trial.connect(str(path))
        except OSError as error:
            # EAGAIN: an agent listens, and its queue of connections is full.
            if error.errno != errno.EAGAIN:
                if is_transient(error):
                    raise ListenError(f"cannot listen on {path}: {explained(error)}") from None
                path.unlink(missing_ok=True)
                return
    raise ListenError(f"cannot listen on {path}: another agent listens on it")
