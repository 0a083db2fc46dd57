"""What the agent counts about itself, for Prometheus, and its health for the kubelet.

With a metrics address it serves `/metrics`, `/healthz` (the agent lives) and `/readyz` (it serves).
The kubelet can't present a client certificate, so it asks these instead of gRPC.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from latencyprobe.domain.stages import Module
from latencyprobe_agent.serving.tls_proxy import Refusal
from latencyprobe_agent.targets.facts import TargetState

log = logging.getLogger(__name__)

_PLAIN = "text/plain; charset=utf-8"
_REQUEST_BYTES = 16 << 10
_REQUEST_TIMEOUT_S = 5.0


class Metrics:
    """The agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._modules = Gauge(
            "latencyprobe_module_loaded",
            "1 where the module's eBPF programs are attached.",
            ["module"],
            registry=self.registry,
        )
        self._targets = Gauge(
            "latencyprobe_targets",
            "Targets of all probes, by how far they were found.",
            ["state"],
            registry=self.registry,
        )
        self._program_cpu = Gauge(
            "latencyprobe_program_cpu_ratio",
            "Run time of the eBPF programs in cores; absent where the kernel does not tell.",
            registry=self.registry,
        )
        self.reports = Counter(
            "latencyprobe_reports_sent", "Reports sent to the client.", registry=self.registry
        )
        self.reads = Counter(
            "latencyprobe_engine_reads", "Readings of the kernel's maps.", registry=self.registry
        )
        self.apply_seconds = Histogram(
            "latencyprobe_apply_seconds",
            "From receiving a desired state to having it attached.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=self.registry,
        )
        self._refused = Counter(
            "latencyprobe_refused_connections",
            "Connections that were not let in, and calls of clients with another name than the"
            " operator's.",
            ["reason"],
            registry=self.registry,
        )
        for refusal in Refusal:
            self._refused.labels(refusal)
        self.show_modules(())
        self.show_targets({})

    def show_modules(self, loaded: Iterable[Module]) -> None:
        """Say which modules are loaded."""
        modules = set(loaded)
        for module in Module:
            self._modules.labels(module).set(module in modules)

    def show_targets(self, counts: Mapping[TargetState, int]) -> None:
        """Say how many targets are in which state."""
        for state in TargetState:
            self._targets.labels(state).set(counts.get(state, 0))

    def count_refusal(self, reason: str) -> None:
        """Somebody was not let in."""
        self._refused.labels(reason).inc()

    def show_program_cpu(self, cpu_percent: float | None) -> None:
        """Say what the programs cost."""
        if cpu_percent is not None:
            self._program_cpu.set(cpu_percent / 100)


class MetricsServer:
    """Answers GET requests, one a connection, until closed."""

    def __init__(self, metrics: Metrics, is_ready: Callable[[], bool]) -> None:
        self._registry = metrics.registry
        self._is_ready = is_ready
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which was chosen where 0 was asked for. Raises OSError."""
        self._server = await asyncio.start_server(
            self._answer, host or None, port, limit=_REQUEST_BYTES
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._response(request)
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a request for metrics broke off", exc_info=True)
        finally:
            writer.close()

    def _response(self, request: bytes) -> tuple[str, str, bytes]:
        """(status, content type, body) for a request's head."""
        method, _, rest = request.partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", _PLAIN, b"GET only\n"
        match rest.split(b" ", 1)[0].split(b"?", 1)[0]:
            case b"/metrics":
                return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case b"/healthz":
                return "200 OK", _PLAIN, b"ok\n"
            case b"/readyz" if self._is_ready():
                return "200 OK", _PLAIN, b"ok\n"
            case b"/readyz":
                return "503 Service Unavailable", _PLAIN, b"not ready\n"
            case _:
                return "404 Not Found", _PLAIN, b"/metrics, /healthz or /readyz\n"
