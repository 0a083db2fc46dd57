"""One trace by one agent: a session that receives single packets besides its reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.local.agent_process import AgentError
from latencyprobe.local.session import GENERATION, PROBE_ID, MeasurementRequest, Session
from latencyprobe.process.tasks import all_to_end
from latencyprobe.protocol.packets import counts_from_proto, packet_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc

OnPackets = Callable[[Sequence[TracedPacket]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a trace: minimum duration by stage, and packets per second (0: all)."""

    stages_ns: Mapping[str, int]
    per_second: int


class TraceSession(Session):
    """A measurement that passes on the packets which reach a limit. See `Session`.

    `seen_until_now` ends the measurement: only then are the counts exact.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        request: MeasurementRequest,
        limits: Limits,
        on_packets: OnPackets,
    ) -> None:
        super().__init__(channel, request)
        self._agent = rpc.NodeAgentStub(channel)
        self._limits = limits
        self._on_packets = on_packets
        self._events: Any = None
        self._has_ended = asyncio.Event()
        self.counts = TraceCounts()
        self.sampling_ratio = 1.0

    async def attach(self) -> None:
        """Have the packets reported; return once they are. Raise AgentError if no stage can be."""
        self._events = self._agent.Trace(
            pb.TraceRequest(
                probe_id=PROBE_ID,
                limits=[
                    pb.StageLimit(stage=stage, min_ns=limit_ns)
                    for stage, limit_ns in self._limits.stages_ns.items()
                ],
                max_packets_per_second=self._limits.per_second,
            ),
            wait_for_ready=True,
        )
        # Before the probe is applied, so that the programs are compiled once.
        await self._events.read()
        await super().attach()
        self._check_coverage()

    async def watch(self, on_report: Callable[[], None]) -> None:
        """Take in reports and packets until both streams end."""
        await all_to_end(super().watch(on_report), self._follow())

    async def seen_until_now(self) -> None:
        """End the measurement; return once its last packet was passed on.

        A failure here may be a consequence of a failed stream; `watch` raises the reason.
        """
        await super().seen_until_now()
        await self._agent.Apply(pb.DesiredState(generation=GENERATION + 1))
        await self._has_ended.wait()

    async def _follow(self) -> None:
        while isinstance(message := await self._events.read(), pb.TraceEvents):
            self.counts = counts_from_proto(message.counts)
            self.sampling_ratio = message.counts.sampling_ratio
            if message.packets:
                await self._on_packets([packet_from_proto(each) for each in message.packets])
        self._has_ended.set()

    def _check_coverage(self) -> None:
        coverage = {stage.name: stage for stage in self.report().coverage}
        missing = [
            f"{name}: {coverage[name].reason}"
            for name in self._limits.stages_ns
            if name in coverage and coverage[name].state is CoverageState.UNAVAILABLE
        ]
        if len(missing) == len(self._limits.stages_ns):
            raise AgentError("cannot trace on this machine: " + "; ".join(missing))
