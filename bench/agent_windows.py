"""The cost of windows and reports for an agent: python -m bench.agent_windows [--help].

One probe has many pods, with packets in every stage of rx, tx and tcp. The agent is the real one,
over real gRPC with mutual TLS. Only the kernel is simulated: each reading decodes the bytes of as
many busy slots. A second process reads the reports, and acknowledges them. An interval has 2 s, and
the window six of them. So each costs as much as one of 10 s of a window of 60 s. CPU is that of an
interval, as a part of 10 s.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from bench.outcome import CannotMeasureError
from bench.probe_of_windows import INTERVAL_S, INTERVALS_OF_A_WINDOW
from bench.watched_process import free_port
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.identities import OPERATOR_NAME
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
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.desired import ContainerSelector, Selector
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.kernel.abi import SLOT_STATS, STAGE_STATS, TOP_NS
from latencyprobe_agent.kernel.contract import LostPart, Overhead, SlotSpec, TraceSpec
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios, decode_slot
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.service import Server, TcpAddress
from latencyprobe_agent.serving.tls import ServerTlsFiles
from latencyprobe_agent.targets.facts import TargetFacts, Tracker
from latencyprobe_agent.targets.resolver import Resolver

MEASURED_INTERVALS = 10
# The interval and the largest part of a core of the design.
USUAL_INTERVAL_S = 10
MOST_PERCENT = 1.5
PACKETS = 2000


@dataclass(frozen=True, slots=True)
class CostOfAnInterval:
    """The cost of an interval. `decoding_ms`: the part of the CPU time for reading the maps."""

    pods: int
    cpu_ms: float
    decoding_ms: float
    cpu_percent: float
    report_kib: float
    rss_before_mib: float
    rss_mib: float
    peak_rss_mib: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pods", type=click.IntRange(1, 1000), default=110, show_default=True)
@click.option(
    "--max-pods",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    help="Pods that are reported in full.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a document, not tables.")
def main(*, pods: int, max_pods: int, as_json: bool) -> None:
    """Measure what the windows and reports of busy pods cost an agent."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        client = subprocess.Popen(
            [
                *(sys.executable, "-m", "bench.report_reader", folder, address),
                *(str(pods), str(max_pods)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            files = ServerTlsFiles(*map(Path, _line_of(client).split()))
            serving = _serve(TcpAddress(address, files, OPERATOR_NAME), pods)
            figures = replace(asyncio.run(serving), report_kib=_newest_kib(client))
        finally:
            client.kill()
            client.wait()
    _print(figures, as_json=as_json)


def _line_of(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline()


def _newest_kib(client: subprocess.Popen[str]) -> float:
    """End the client; it says how large the newest report was."""
    assert client.stdin is not None
    client.stdin.close()
    return int(_line_of(client)) / 1024


# --------------------------------------------------------------------------------- agent


async def _serve(address: TcpAddress, pods: int) -> CostOfAnInterval:
    engine = BusyEngine()
    agent = Agent(engine, AllRunning(), _NODE, AgentMetrics(), NoEvidence())
    server = Server(agent, address)
    await server.start()
    keeper = asyncio.create_task(agent.keep())
    before_mib = _rss_mib()
    try:
        await _until(engine, INTERVALS_OF_A_WINDOW + 2)
        engine.decoding_s, cpu, reads = 0.0, time.process_time(), engine.reads
        await _until(engine, reads + MEASURED_INTERVALS)
        intervals = engine.reads - reads
        cpu_ms = 1000 * (time.process_time() - cpu) / intervals
        return CostOfAnInterval(
            pods=pods,
            cpu_ms=cpu_ms,
            decoding_ms=1000 * engine.decoding_s / intervals,
            cpu_percent=cpu_ms / 10 / USUAL_INTERVAL_S,
            report_kib=0.0,
            rss_before_mib=before_mib,
            rss_mib=_rss_mib(),
            peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
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


def _print(figures: CostOfAnInterval, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(figures), indent=2))
        return
    print(
        f"{figures.pods} busy pods: {figures.cpu_ms:.0f} ms of CPU an interval, of these "
        f"{figures.decoding_ms:.0f} ms for reading the maps. Of {USUAL_INTERVAL_S} s that is "
        f"{figures.cpu_percent:.2f} % of a core (at most {MOST_PERCENT:g} % wanted)"
    )
    print(
        f"newest report: {figures.report_kib:.0f} KiB; RSS {figures.rss_before_mib:.0f} MiB before "
        f"the probe, then {figures.rss_mib:.0f} MiB, at most {figures.peak_rss_mib:.0f} MiB"
    )


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
