"""An agent that plays a scenario over the real protocol: [hostile:]SCENARIO --socket PATH.

Stands in for `latencyprobe agent` where the command line is tested without a kernel's help. A
hostile agent plays the scenario with texts that attack their reader.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import Message

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.protocol.measurements import PROTOCOL_VERSION, measurement_to_proto, node_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc
from tests.unit.hostile_text import HOSTILE, HOSTILE_COMM, make_hostile

_Message = TypeVar("_Message", bound=Message)
Context = grpc.aio.ServicerContext[object, object]
SCENARIOS = (
    "measures",
    "fails-to-start",
    "dies-while-attaching",
    "dies-while-measuring",
    "refuses",
    "finds-no-target",
    "loses-every-target",
    "speaks-another-protocol",
    "sends-nonsense",
    "attaches-slowly",
    "cannot-trace",
    "samples",
)
HOSTILE_PREFIX = "hostile:"
PACKETS_PER_REPORT = 200
INTERVAL_S = 0.1
COVERAGE = [
    pb.StageCoverage(name="rx.total", state=pb.StageCoverage.ACTIVE, hook="tp_btf/tcp_probe"),
    pb.StageCoverage(name="rx.host", state=pb.StageCoverage.PARTIAL, reason="no bridge hook"),
    pb.StageCoverage(name="tx.qdisc", state=pb.StageCoverage.UNAVAILABLE, reason="no such hook"),
]
SLOW_READER = Measurement(
    {
        "rx.stack": StageMeasurement(Histogram.of([1_000_000] * PACKETS_PER_REPORT)),
        "rx.socket": StageMeasurement(Histogram.of([9_000_000] * PACKETS_PER_REPORT), lost=1),
        "rx.total": StageMeasurement(Histogram.of([10_000_000] * PACKETS_PER_REPORT)),
    },
    {"retransmits": 1, "connectRefused": 0},
)

BUSY_NODE = NodeMeasurement(
    {NodeStage("rx.softirq", "NET_RX"): StageMeasurement(Histogram.of([5_000]))},
    {"softnetTimeSqueezed": 3},
)


SLOW_PACKETS = [
    pb.TracedPacket(
        ended_unix_ns=1_700_000_000_123_456_789 + index,
        pid=4242,
        thread_id=4243,
        command="server",
        cpu=1,
        protocol="TCP",
        local=pb.Endpoint(address=bytes([198, 51, 100, 2]), port=7000),
        remote=pb.Endpoint(address=bytes([198, 51, 100, 1]), port=50_000 + index),
        stages_ns={"rx.softirq": 500, "rx.socket": 5_000_000, "rx.total": 5_000_500},
    )
    for index in range(3)
]


class ScriptedAgent(rpc.NodeAgentServicer):
    """Answers as its scenario says."""

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario
        self._desired = pb.DesiredState()
        self._applied = asyncio.Event()

    async def GetNodeInfo(  # noqa: N802 (the protocol's name)
        self, request: pb.GetNodeInfoRequest, context: Context
    ) -> pb.NodeInfo:
        return pb.NodeInfo(
            agent_version="0.1.0",
            protocol_version=9 if self._scenario == "speaks-another-protocol" else PROTOCOL_VERSION,
            instance_id="scripted",
            node_name="node-a",
            kernel_release="6.18.0",
            architecture="x86_64",
            kernel_types="btf",
            cgroup_version="v2",
        )

    async def Apply(  # noqa: N802
        self, request: pb.DesiredState, context: Context
    ) -> pb.ApplyResult:
        match self._scenario:
            case "dies-while-attaching":
                self._die("the kernel said no")
            case "attaches-slowly":
                print("attaching slowly", file=sys.stderr, flush=True)
                await asyncio.sleep(60)
            case "refuses":
                await self._refuse(context, "kernel types: install BTF")
        self._desired = request
        self._applied.set()
        return pb.ApplyResult(
            generation=request.generation,
            probes=[pb.ProbeStatus(id=p.id, targets=self._statuses(p)) for p in request.probes],
            coverage=COVERAGE,
        )

    async def Trace(  # noqa: N802
        self, request: pb.TraceRequest, context: Context
    ) -> AsyncIterator[pb.TraceEvents]:
        if self._scenario == "cannot-trace":
            await self._refuse(context, "no BPF ring buffer")
        counts = pb.TraceCounts(sampling_ratio=0.25 if self._scenario == "samples" else 1)
        yield pb.TraceEvents(counts=counts)
        await self._applied.wait()
        while self._desired.probes:
            counts.reported += len(SLOW_PACKETS)
            counts.rate_limited += 1
            yield pb.TraceEvents(packets=SLOW_PACKETS, counts=counts)
            await asyncio.sleep(INTERVAL_S / 4)
            if self._scenario == "dies-while-measuring":
                self._die("out of memory")
        counts.lost += 7
        yield pb.TraceEvents(counts=counts)

    async def WatchReports(  # noqa: N802
        self, requests: AsyncIterator[pb.WatchReportsRequest], context: Context
    ) -> AsyncIterator[pb.Report]:
        yield self._report(1, [])
        for sequence in range(2, 1000):
            begin = time.time_ns()
            await asyncio.sleep(INTERVAL_S)
            yield self._report(
                sequence, [self._probe_report(p, begin) for p in self._desired.probes]
            )
            if self._scenario == "dies-while-measuring":
                self._die("out of memory")

    def _report(self, sequence: int, probes: list[pb.ProbeReport]) -> pb.Report:
        return pb.Report(
            instance_id="scripted",
            generation=self._desired.generation,
            sequence=sequence,
            probes=probes,
        )

    def _probe_report(self, probe: pb.Probe, begin_ns: int) -> pb.ProbeReport:
        stages, counters = measurement_to_proto(SLOW_READER)
        if self._scenario == "sends-nonsense":
            stages[0].sampling_ratio = 7
        report = pb.ProbeReport(id=probe.id)
        report.begin.FromNanoseconds(begin_ns)
        report.end.FromNanoseconds(time.time_ns())
        for status in self._statuses(probe):
            if self._scenario == "loses-every-target":
                status.state = pb.TargetStatus.GONE
                status.message = "it ended"
            netns = {"TcpExtListenDrops": 2}
            report.targets.add(
                status=status, stages=stages, counters=counters, netns_counters=netns
            )
        report.node.CopyFrom(node_to_proto(BUSY_NODE))
        return report

    async def _refuse(self, context: Context, reason: str) -> NoReturn:
        await context.abort(grpc.StatusCode.INTERNAL, reason)

    def _die(self, last_words: str) -> NoReturn:
        die(last_words)

    def _statuses(self, probe: pb.Probe) -> list[pb.TargetStatus]:
        return [self._status(target) for target in probe.targets]

    def _status(self, target: pb.Target) -> pb.TargetStatus:
        if self._scenario == "finds-no-target" or target.cgroup_path == b"/no/cgroup":
            return pb.TargetStatus(
                id=target.id, state=pb.TargetStatus.FAILED, message="/no/cgroup is no cgroup"
            )
        return pb.TargetStatus(
            id=target.id,
            state=pb.TargetStatus.ATTACHED,
            pids=[target.pid] if target.pid else [],
            cgroup="/system.slice",
        )


class HostileAgent(ScriptedAgent):
    """Plays a scenario with texts that attack their reader."""

    async def GetNodeInfo(  # noqa: N802
        self, request: pb.GetNodeInfoRequest, context: Context
    ) -> pb.NodeInfo:
        return hostile(await super().GetNodeInfo(request, context))

    async def Apply(  # noqa: N802
        self, request: pb.DesiredState, context: Context
    ) -> pb.ApplyResult:
        return hostile(await super().Apply(request, context))

    async def Trace(  # noqa: N802
        self, request: pb.TraceRequest, context: Context
    ) -> AsyncIterator[pb.TraceEvents]:
        async for events in super().Trace(request, context):
            yield hostile(events)

    async def WatchReports(  # noqa: N802
        self, requests: AsyncIterator[pb.WatchReportsRequest], context: Context
    ) -> AsyncIterator[pb.Report]:
        async for report in super().WatchReports(requests, context):
            yield hostile(report)

    async def _refuse(self, context: Context, reason: str) -> NoReturn:
        await super()._refuse(context, reason + HOSTILE)

    def _die(self, last_words: str) -> NoReturn:
        sys.stderr.buffer.write(HOSTILE_COMM)
        super()._die(last_words)


def hostile(message: _Message) -> _Message:
    """Return the message with texts that attack their reader."""
    copy = type(message)()
    copy.CopyFrom(message)
    make_hostile(copy)
    return copy


def die(last_words: str) -> NoReturn:
    """End as a crash would."""
    print(last_words, file=sys.stderr, flush=True)

    os._exit(3)


async def serve(scenario: str, socket: str) -> None:
    """Serve until SIGTERM."""
    server = grpc.aio.server()
    play = HostileAgent if scenario.startswith(HOSTILE_PREFIX) else ScriptedAgent
    rpc.add_NodeAgentServicer_to_server(play(scenario.removeprefix(HOSTILE_PREFIX)), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Play the scenario."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "scenario", choices=[*SCENARIOS, *(HOSTILE_PREFIX + each for each in SCENARIOS)]
    )
    parser.add_argument("--socket", required=True)
    parser.add_argument("--exit-with-parent", type=int)
    arguments = parser.parse_args()
    if arguments.scenario == "fails-to-start":
        die("no BTF here")
    asyncio.run(serve(arguments.scenario, arguments.socket))


if __name__ == "__main__":
    main()
