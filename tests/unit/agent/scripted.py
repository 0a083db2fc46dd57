"""An engine that measures what the test says, and a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

from latencyprobe.domain.coverage import NO_DATAGRAMS, CoverageState, StageCoverage
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    StageMeasurement,
)
from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe_agent.desired import Selector
from latencyprobe_agent.evidence.counters import growth
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.kernel.contract import (
    EngineError,
    HookCost,
    LostPart,
    Overhead,
    SlotSpec,
    TraceSpec,
)
from latencyprobe_agent.targets.facts import TargetFacts


def samples(*durations_ns: int, stage: str = "rx.total") -> Measurement:
    """A measurement of one stage."""
    return Measurement({stage: StageMeasurement(Histogram.of(durations_ns))})


class ScriptedEngine:
    """Keeps to the Engine protocol; the test is its kernel."""

    def __init__(self) -> None:
        self.modules: frozenset[Module] = frozenset()
        self.slots: dict[int, SlotSpec] = {}
        self.assignments: list[dict[int, SlotSpec]] = []
        self.measured: dict[int, Measurement] = {}
        self.node = NOTHING_OF_THE_NODE
        self.refusal: str | None = None
        self.bug: Exception | None = None
        self.stall: asyncio.Event | None = None
        self.stalled = 0
        self.reads = 0
        self.is_closed = False
        self.cpu_percent: float | None = 0.5
        self.figure = 0
        self.lacking: dict[int, list[LostPart]] = {}
        self.sample_shift = 0
        self.slice_shift = 0
        self.hooks: tuple[HookCost, ...] = ()
        self.stopped: frozenset[Module] = frozenset()
        self.tracing = False
        self.udp = False
        self.trace_refusal: str | None = None
        self.trace_spec: TraceSpec | None = None
        self.trace_counts = TraceCounts()
        self._packets: list[TracedPacket] = []
        self._packets_due = asyncio.Event()

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        """Load, or refuse where the test wants it; a stall holds it up until it is set."""
        if self.stall is not None and not self.stall.is_set():
            self.stalled += 1
            await self.stall.wait()
        if self.refusal is not None and modules:
            raise EngineError(self.refusal)
        if self.trace_refusal is not None and tracing:
            raise EngineError(self.trace_refusal)
        self.modules, self.tracing, self.udp = modules, tracing, udp

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        """Note the slots; a new number starts from zero."""
        if self.bug is not None:
            raise self.bug
        for number in slots.keys() - self.slots.keys():
            self.measured.pop(number, None)
        self.slots = dict(slots)
        self.assignments.append(self.slots)

    def read(self) -> Mapping[int, Measurement]:
        """Hand out what was measured since the last reading."""
        self.reads += 1
        delta, self.measured = self.measured, {}
        return delta

    def read_node(self) -> NodeMeasurement:
        """Hand out what was measured of the node since the last reading."""
        delta, self.node = self.node, NOTHING_OF_THE_NODE
        return delta

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """Stages of loaded modules are active; those of received packets say it without UDP."""
        return tuple(
            StageCoverage(
                stage.name,
                CoverageState.ACTIVE,
                "scripted",
                NO_DATAGRAMS if stage.module is Module.RX and not self.udp else "",
            )
            if stage.module in self.modules
            else StageCoverage(stage.name, CoverageState.IDLE)
            for stage in STAGES
        )

    @property
    def lost_parts(self) -> Mapping[int, Sequence[LostPart]]:
        """What the test says."""
        return self.lacking

    def overhead(self) -> Overhead:
        """What the test says."""
        return Overhead(
            self.cpu_percent, self.figure, hooks=self.hooks, slice_shift=self.slice_shift
        )

    def sample(self, shift: int, slice_shift: int = 0) -> None:
        """Note it."""
        self.sample_shift, self.slice_shift = shift, slice_shift

    def stop(self, modules: frozenset[Module]) -> None:
        """Note it."""
        self.stopped = modules

    def trace(self, spec: TraceSpec | None) -> None:
        """Note it; a new trace counts anew."""
        if spec is not None and self.trace_spec is None:
            self.trace_counts = TraceCounts()
        self.trace_spec = spec
        self._packets_due.set()

    async def traced(self) -> Sequence[TracedPacket]:
        """Hand out what the test told of."""
        while not self._packets and self.trace_spec is not None:
            self._packets_due.clear()
            await self._packets_due.wait()
        packets, self._packets = self._packets, []
        return packets

    def tell(self, *packets: TracedPacket, limited: int = 0, lost: int = 0) -> None:
        """Have packets told of, and others not."""
        self.trace_counts += TraceCounts(len(packets), limited, lost)
        self._packets.extend(packets)
        self._packets_due.set()

    async def close(self) -> None:
        """Note it."""
        self.trace(None)
        self.is_closed = True
        self.modules = frozenset()

    def measure(self, measurement: Measurement, *, slot: int | None = None) -> None:
        """Have something measured in a slot; without a number in the only one."""
        number = next(iter(self.slots)) if slot is None else slot
        self.measured[number] = self.measured.get(number, NOTHING) + measurement


class ScriptedEvidence:
    """Keeps to the EvidenceSource protocol: the counters stand where the test sets them."""

    def __init__(self) -> None:
        self.counters: dict[int, dict[str, int]] = {}
        self.node: dict[str, int] = {}
        self.read: list[Namespace] = []
        self.is_closed = False
        self.cgroups: dict[Selector, dict[str, int]] = {}
        self._cgroups_before: dict[Selector, dict[str, int]] = {}
        self._before: dict[int, dict[str, int]] = {}
        self._node_before: dict[str, int] | None = None

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """By how much the counters have grown since they were read."""
        grown = {}
        for namespace in namespaces:
            self.read.append(namespace)
            now = dict(self.counters.get(namespace.inode, {}))
            before = self._before.get(namespace.inode, now)
            grown[namespace.inode] = growth({**dict.fromkeys(now, 0), **before}, now)
            self._before[namespace.inode] = now
        return {inode: counters for inode, counters in grown.items() if counters}

    def of_cgroups(
        self, targets: Mapping[Selector, TargetFacts]
    ) -> Mapping[Selector, Mapping[str, int]]:
        """By how much those of the targets' cgroups have grown since they were read."""
        grown = {}
        for selector in targets:
            now = dict(self.cgroups.get(selector, {}))
            before = self._cgroups_before.get(selector, now)
            grown[selector] = growth({**dict.fromkeys(now, 0), **before}, now)
            self._cgroups_before[selector] = now
        return {selector: counters for selector, counters in grown.items() if counters}

    def of_node(self) -> Mapping[str, int]:
        """By how much the node's have grown since they were read."""
        now = dict(self.node)
        before = now if self._node_before is None else self._node_before
        self._node_before = now
        return growth({**dict.fromkeys(now, 0), **before}, now)

    def keep(self, homes: Collection[int | Selector]) -> None:
        """Forget the others."""
        self._before = {inode: c for inode, c in self._before.items() if inode in homes}
        self._cgroups_before = {s: c for s, c in self._cgroups_before.items() if s in homes}

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
