"""The cost of windows and reports for an agent: python -m bench.agent_windows [PODS] [MAX_PODS].

One probe has PODS pods (by default 110) with packets in every stage of rx, tx and tcp. The agent is
the real one, over real gRPC without TLS. Only the kernel is simulated: each reading decodes the
bytes of as many busy slots. A second process reads the reports, and acknowledges them. An
interval has 2 s, and the window six of them. So each costs as much as one of 10 s of a window of
60 s. Prints the CPU time of an interval, as a part of 10 s, and RSS.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from bench.outcome import CannotMeasureError
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING_OF_THE_NODE, Measurement, NodeMeasurement
from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import (
    CGROUP_COUNTERS,
    DEFAULT_MODULES,
    STAGES,
    TARGET_STAGES,
    Module,
)
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.desired import ContainerSelector, Selector
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.kernel.abi import SLOT_STATS, STAGE_STATS, TOP_NS
from latencyprobe_agent.kernel.contract import LostPart, Overhead, SlotSpec, TraceSpec
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios, decode_slot
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.service import Server, SocketAddress
from latencyprobe_agent.targets.facts import TargetFacts, Tracker
from latencyprobe_agent.targets.resolver import Resolver

INTERVAL_S = 2
INTERVALS_OF_A_WINDOW = 6
MEASURED_INTERVALS = 10
# The interval and the largest part of a core of the design.
USUAL_INTERVAL_S = 10
MOST_PERCENT = 1.5
PACKETS = 2000


def main() -> None:
    """Run a client beside the agent, and print the agent's cost."""
    pods, max_pods = (int(each) for each in (sys.argv[1:] + ["110", "20"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        address = Path(folder) / "private" / "agent.sock"
        client = multiprocessing.get_context("spawn").Process(
            target=read_reports, args=(address, pods, max_pods)
        )
        client.start()
        try:
            asyncio.run(_serve(address, pods))
        finally:
            client.terminate()
            client.join()


# -------------------------------------------------------------------------------- client


def read_reports(address: Path, pods: int, max_pods: int) -> None:
    """Apply the probe, and read its reports until the agent ends."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        asyncio.run(_read_reports(address, pods, max_pods))


async def _read_reports(address: Path, pods: int, max_pods: int) -> None:
    async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
        stub = NodeAgentStub(channel)
        # The types of the stubs know neither `write` nor clients of asyncio.
        call: Any = stub.WatchReports(wait_for_ready=True)
        await call.write(pb.WatchReportsRequest())
        await stub.Apply(_state(pods, max_pods), wait_for_ready=True)
        sizes: list[int] = []
        while (report := await call.read()) is not grpc.aio.EOF:
            await call.write(pb.WatchReportsRequest(acknowledged=report.sequence))
            sizes.append(report.ByteSize())
            if len(sizes) % 10 == 0:
                print(f"newest report: {sizes[-1] / 1024:.0f} KiB", flush=True)


def _state(pods: int, max_pods: int) -> pb.DesiredState:
    probe = pb.Probe(
        id="bench",
        name="bench",
        modules=[str(module) for module in DEFAULT_MODULES],
        interval=Duration(seconds=INTERVAL_S),
        window=Duration(seconds=INTERVAL_S * INTERVALS_OF_A_WINDOW),
        max_pods=max_pods,
        pods_in_full=pb.PodChoice(most=max_pods),
        targets=[
            pb.Target(
                id=str(number),
                container=pb.Container(
                    pod_uid=f"00000000-0000-0000-0000-{number:012x}",
                    container_id=f"containerd://{number:064x}",
                    pod_name=f"checkout-{number:05}",
                    container_name="server",
                ),
            )
            for number in range(1, pods + 1)
        ],
    )
    return pb.DesiredState(generation=1, probes=[probe])


# --------------------------------------------------------------------------------- agent


async def _serve(address: Path, pods: int) -> None:
    engine = BusyEngine()
    agent = Agent(engine, AllRunning(), _NODE, AgentMetrics(), NoEvidence())
    server = Server(agent, SocketAddress(address))
    await server.start()
    keeper = asyncio.create_task(agent.keep())
    print(f"before the probe: RSS {_rss_mib():.0f} MiB")
    try:
        await _until(engine, INTERVALS_OF_A_WINDOW + 2)
        engine.decoding_s, cpu, reads = 0.0, time.process_time(), engine.reads
        await _until(engine, reads + MEASURED_INTERVALS)
        intervals = engine.reads - reads
        interval_s = (time.process_time() - cpu) / intervals
        _print_figures(pods, interval_s, engine.decoding_s / intervals)
    finally:
        keeper.cancel()
        await agent.close()
        await server.stop()


async def _until(engine: BusyEngine, reads: int) -> None:
    async with asyncio.timeout(20 * INTERVAL_S * MEASURED_INTERVALS):
        while engine.reads < reads:
            await asyncio.sleep(INTERVAL_S / 2)
    if not engine.slots:
        raise CannotMeasureError("the probe was not applied")


def _print_figures(pods: int, interval_s: float, decoding_s: float) -> None:
    def percent(seconds: float) -> float:
        return 100 * seconds / USUAL_INTERVAL_S

    print(
        f"{pods} busy pods: {1000 * interval_s:.0f} ms of CPU an interval, of these "
        f"{1000 * decoding_s:.0f} ms for reading the maps. Of {USUAL_INTERVAL_S} s that is "
        f"{percent(interval_s):.2f} % of a core (at most {MOST_PERCENT:g} % wanted)"
    )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"RSS {_rss_mib():.0f} MiB, at most {peak_mib:.0f} MiB")


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


# ---------------------------------------------------------------------------- simulation

_NODE = NodeDescription("bench", "6.18.0", "x86_64", "btf", "v2", host_netns=1)


class AllRunning(Resolver):
    """A resolver to which each container runs."""

    def _tracker_of(self, selector: Selector) -> Tracker:
        return _Running(selector)


class _Running:
    def __init__(self, selector: Selector) -> None:
        assert isinstance(selector, ContainerSelector)
        cgroup_id = int(selector.container_id, 16)
        self._facts = TargetFacts(
            TargetState.ATTACHED, cgroup_ids=frozenset({cgroup_id}), netns=frozenset({cgroup_id})
        )

    def poll(self) -> TargetFacts:
        return self._facts


class NoEvidence:
    """A node on which no counter grows, except a few in each namespace."""

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """Return some counters of each."""
        names = [f"TcpExtCounter{number}" for number in range(12)]
        return {each.inode: dict.fromkeys(names, 3) for each in namespaces}

    def of_cgroups(
        self, targets: Mapping[Selector, TargetFacts]
    ) -> Mapping[Selector, Mapping[str, int]]:
        """Return the account of a quota, and a pressure."""
        names = [*CGROUP_COUNTERS]
        return {each: dict.fromkeys(names, 3) for each in targets}

    def of_node(self) -> Mapping[str, int]:
        """Return some counters."""
        return {"softnetTimeSqueezed": 1}

    def keep(self, homes: Collection[int | Selector]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class BusyEngine:
    """An engine whose slots have packets in every stage. `decoding_s`: the time to read them."""

    def __init__(self) -> None:
        self.slots: Mapping[int, SlotSpec] = {}
        self.reads = 0
        self.decoding_s = 0.0
        self.trace_counts = TraceCounts()
        self._modules: frozenset[Module] = frozenset()
        self._contents = [_busy_slot() for _ in range(40)]

    async def use(
        self,
        modules: frozenset[Module],
        *,
        tracing: bool = False,  # noqa: ARG002
        udp: bool = True,  # noqa: ARG002
    ) -> None:
        """Load nothing."""
        self._modules = modules

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        """Note the slots."""
        self.slots = slots

    def read(self) -> Mapping[int, Measurement]:
        """Decode what the kernel counted."""
        began = time.process_time()
        taken = {
            slot: decode_slot(random.choice(self._contents), SamplingRatios(), [])
            for slot in self.slots
        }
        self.decoding_s += time.process_time() - began
        self.reads += bool(taken)
        return taken

    def read_node(self) -> NodeMeasurement:
        """Return nothing: the default modules have no stages of the node."""
        return NOTHING_OF_THE_NODE

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """All stages of the loaded modules."""
        return tuple(
            StageCoverage(
                stage.name,
                CoverageState.ACTIVE if stage.module in self._modules else CoverageState.IDLE,
            )
            for stage in STAGES
        )

    @property
    def lost_parts(self) -> Mapping[int, Sequence[LostPart]]:
        """Return nothing."""
        return {}

    def overhead(self) -> Overhead:
        """Return a figure."""
        return Overhead(0.1, self.reads)

    def sample(self, shift: int, slice_shift: int = 0) -> None:
        """Do nothing."""

    def stop(self, modules: frozenset[Module]) -> None:
        """Do nothing."""

    def trace(self, spec: TraceSpec | None) -> None:
        """Do nothing."""

    async def traced(self) -> Sequence[TracedPacket]:
        """Return nothing."""
        return ()

    async def close(self) -> None:
        """Do nothing."""


def _busy_slot() -> bytes:
    """Return the bytes of a slot with log-normal durations in every stage of the modules."""
    content = bytearray(SLOT_STATS.size)
    header, counts = STAGE_STATS.part("sum", "missing"), STAGE_STATS.part("counts")
    scale = random.uniform(9, 12)
    for index, stage in enumerate(TARGET_STAGES):
        if stage.module not in DEFAULT_MODULES:
            continue
        durations = [round(random.lognormvariate(scale, 0.7)) for _ in range(PACKETS)]
        histogram = Histogram.of(durations)
        at = SLOT_STATS.offset("stages") + index * STAGE_STATS.size
        extremes = (histogram.max_ns, TOP_NS - histogram.min_ns, 0, 0)
        header.pack_into(content, at, histogram.sum_ns, *extremes, 0, 0, 0)
        row = [0] * (counts.size // 4)
        for position, count in histogram.buckets.items():
            row[position] = count
        counts.pack_into(content, at + STAGE_STATS.offset("counts"), *row)
    return bytes(content)


if __name__ == "__main__":
    main()
