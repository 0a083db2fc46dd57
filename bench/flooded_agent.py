"""The real agent over mutual TLS, with a legitimate operator, as the subject of floods."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from bench.agent_process import RunningAgent
from bench.outcome import CannotMeasureError
from bench.programs import programs
from bench.watched_process import LOOPBACK, WatchedProgram, counters, cpu_s, free_port, get, running
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.agent import Authority

_READY_S = 300.0
_IDLE_CPU = 0.1
_CALL_S = 30.0
_OPTIONS = (
    ("grpc.ssl_target_name_override", AGENT_NAME),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Clients:
    """Certificates of clients: the operator's, one of another name, and one of another authority.

    They are made before the agent starts: it ends all connections when its files are written.
    """

    operator: ClientTlsFiles
    other: ClientTlsFiles
    foreign: ClientTlsFiles

    @classmethod
    def of(cls, authority: Authority) -> Clients:
        """Make the certificates."""
        foreign = Authority.make(authority.directory / "foreign")
        return cls(
            authority.issue(OPERATOR_NAME),
            authority.issue("other.latencyprobe.io"),
            foreign.issue(OPERATOR_NAME),
        )


class FloodedAgent:
    """A running agent. Made by `flooded_agent`."""

    def __init__(
        self, program: WatchedProgram, port: int, metrics_port: int, clients: Clients
    ) -> None:
        self.program = program
        self.port = port
        self.metrics_port = metrics_port
        self.clients = clients
        self._running: RunningAgent | None = None

    @asynccontextmanager
    async def operated(self) -> AsyncIterator[None]:
        """Keep an operator's connection with a stream of reports, for the time of the block."""
        async with self._channel() as channel:
            self._running = RunningAgent(self.program.pid, NodeAgentStub(channel))
            async with self._running.reports():
                yield

    async def apply(self) -> None:
        """Apply the same state again, by the operator's connection."""
        assert self._running is not None
        await self._running.wait_for_a_pod()

    async def connect(self) -> None:
        """Have the agent answer by a new connection of the operator."""
        async with self._channel() as channel:
            await NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=_CALL_S)

    async def scrape(self) -> None:
        """Read the metrics."""
        await get(self.metrics_port, "/metrics")

    async def refusals(self) -> dict[str, int]:
        """Return the number of refused connections, by reason."""
        page = await get(self.metrics_port, "/metrics")
        return counters(page.decode(), "latencyprobe_refused_connections_total")

    async def until_idle(self) -> None:
        """Wait until it has loaded its programs, and does nothing else."""
        deadline = time.monotonic() + _READY_S
        before = cpu_s(self.program.pid)
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            self.program.check_runs()
            spent, before = cpu_s(self.program.pid) - before, cpu_s(self.program.pid)
            if spent < _IDLE_CPU and programs(self.program.pid):
                return
        raise CannotMeasureError(f"the agent is not idle after {_READY_S:.0f} s")

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            f"{LOOPBACK}:{self.port}", self.clients.operator.credentials(), options=_OPTIONS
        )


@asynccontextmanager
async def flooded_agent() -> AsyncIterator[FloodedAgent]:
    """Run an agent with TLS and metrics, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as name:
        folder = Path(name)
        authority = Authority.make(folder / "tls")
        tls, clients = authority.issue(AGENT_NAME), Clients.of(authority)
        port, metrics_port = free_port(), free_port()
        with running(
            *("agent", "--listen", f"{LOOPBACK}:{port}", "--exit-with-parent"),
            *("--ca-file", tls.ca, "--cert-file", tls.certificate, "--key-file", tls.key),
            *("--metrics-address", f"{LOOPBACK}:{metrics_port}"),
            *("--object-cache", folder / "objects"),
            log=folder / "log",
        ) as program:
            yield FloodedAgent(program, port, metrics_port, clients)
