"""Readings of the engine and of the evidence, taken into the accounts of the probes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from latencyprobe.domain.coverage import MEASURED
from latencyprobe.domain.measurement import NodeMeasurement
from latencyprobe.domain.overhead import HookOverhead, ProgramsOverhead
from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import BY_NAME, Module, waits_for_cgroups
from latencyprobe_agent.budget import NO_CEILINGS, Ceilings, budget_in_force
from latencyprobe_agent.collector import (
    Collector,
    Departed,
    Moment,
    OverheadMeter,
    ProbeFigures,
)
from latencyprobe_agent.desired import Desired, Selector
from latencyprobe_agent.evidence.known_cgroups import KnownCgroups
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.evidence.source import EvidenceSource
from latencyprobe_agent.instruments import Instruments
from latencyprobe_agent.kernel.contract import Engine, EngineError, Overhead
from latencyprobe_agent.plan import Home, PodTargets, TargetKey
from latencyprobe_agent.pressure import no_pressure
from latencyprobe_agent.sampling import Governor
from latencyprobe_agent.slow_packets import SlowPackets
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.windows.by_probe import Windows

log = logging.getLogger(__name__)

_LONGEST_READING_S = 10.0
# A new figure of the cost is judged within this time.
CONTROL_S = 1.0


class Readings:
    """The measurements that are not yet reported.

    Methods that read the engine need the agent's lock. Figures are taken and put back without it.
    Large, because each source of figures is an attribute.
    """

    def __init__(
        self,
        engine: Engine,
        evidence: EvidenceSource,
        instruments: Instruments,
        clock: Callable[[], float],
        *,
        ceilings: Ceilings = NO_CEILINGS,
        pressure: Callable[[], float] = no_pressure,
        totals: Totals | None = None,
        cgroups: KnownCgroups | None = None,
    ) -> None:
        self._engine = engine
        self._evidence = evidence
        self._instruments = instruments
        self._clock = clock
        self.windows = Windows()
        self.cgroups = cgroups or KnownCgroups(None)
        self._collector = Collector(totals)
        self._slow_packets = SlowPackets(totals) if totals is not None else None
        self._overhead = OverheadMeter()
        self._last_overhead = Overhead(None)
        self._governor = Governor()
        self._ceilings = ceilings
        self._pressure = pressure
        self._controlled_at = clock()
        self._namespaces: Mapping[int, Namespace] = {}
        self._facts: Mapping[Selector, TargetFacts] = {}
        self._last = self.now()
        self._were_taken = asyncio.Event()

    def now(self) -> Moment:
        """Return the time on both clocks."""
        return Moment(self._clock(), time.time_ns())

    # Probes and targets

    def follow(
        self,
        desired: Desired,
        asked: Moment,
        owners: Mapping[int, Sequence[TargetKey]],
        pods: Mapping[str, Sequence[PodTargets]],
    ) -> None:
        """Keep accounts for these probes; a new account begins when it was requested.

        `pods`: those of the probes with windows.
        """
        self._suspend_windows()
        self._follow_windows(desired, asked, pods, self._collector.follow(desired, asked))
        self._collector.own(owners)
        if self._slow_packets is not None:
            self._slow_packets.own(owners, self.now().unix_ns)
        modules = frozenset().union(*(probe.modules for probe in desired.probes))
        budget = budget_in_force(desired.probes, self._ceilings)
        self._governor.keep_to(budget, modules)
        self._instruments.show_budget(budget.cpu_percent)

    def suspend(self) -> None:
        """Keep the windows while the next state is in force: the lease has ended."""
        self.windows.is_suspending = True

    def _suspend_windows(self) -> None:
        if self.windows.is_suspending:
            now = self.now()
            self.windows.add(self._collector.take_for_windows(now, early=True))
            self.windows.suspend(now)

    def _follow_windows(
        self,
        desired: Desired,
        asked: Moment,
        pods: Mapping[str, Sequence[PodTargets]],
        departed: Departed,
    ) -> None:
        active = {
            BY_NAME[stage.name].module
            for stage in self._engine.coverage
            if stage.state in MEASURED and stage.name in BY_NAME
        }
        self.windows.follow(desired, pods, active, departed, asked=asked, now=self.now())

    def move(
        self,
        homes: Mapping[TargetKey, frozenset[Home]],
        found: Mapping[int, Namespace],
        facts: Mapping[Selector, TargetFacts],
    ) -> None:
        """Set the network namespaces and the cgroups of the targets from now on.

        The counters of those that a target enters or leaves are first added for the previous
        targets.
        """
        self._namespaces = {**self._namespaces, **found}
        self._facts = {**self._facts, **facts}
        self._gather(self._collector.moved(homes))
        self._collector.settle(homes)
        self._namespaces, self._facts = found, facts
        kept: frozenset[Home] = frozenset().union(*homes.values())
        self._evidence.keep(kept)

    def note_slow(
        self, probe_id: str, limits_ns: Mapping[str, int], packets: Iterable[TracedPacket]
    ) -> None:
        """Keep traced packets of this probe, or of EVERY_PROBE, beside the sums for metrics."""
        if self._slow_packets is not None:
            self._slow_packets.note(probe_id, limits_ns, packets, self._clock())

    # Reading

    @property
    def next_at(self) -> float | None:
        """The time of the next reading: a probe is due, or the shortest interval has passed."""
        due, interval = self._collector.next_due, self._collector.shortest_interval
        if due is None or interval is None:
            return None
        read_at = self._last.monotonic
        return min(max(due, read_at + interval), read_at + _LONGEST_READING_S)

    def read(self) -> None:
        """Add a reading to the accounts, and wake the stream that waits for figures."""
        before, self._last = self._last, self.now()
        deltas = self._engine.read()
        self._collector.add(deltas)
        self.cgroups.look_up(
            each for delta in deltas.values() for each in waits_for_cgroups(delta.counters)
        )
        self._collector.add_node(self._engine.read_node())
        self._collector.add_node(NodeMeasurement(counters=self._evidence.of_node()))
        self._gather(self._collector.due_homes(self._last))
        overhead = self._last_overhead = self._engine.overhead()
        self._overhead.note(overhead.cpu_percent, self._last.monotonic - before.monotonic)
        self._instruments.note_reading(overhead.cpu_percent, overhead.missed_runs)
        self.windows.add(self._collector.take_for_windows(self._last))
        self._were_taken.set()
        self._control(overhead)

    @property
    def next_control_at(self) -> float | None:
        """The time when the cost is judged next; None without a budget."""
        if not self._governor.has_budget or self._collector.next_due is None:
            return None
        return self._controlled_at + CONTROL_S

    def control(self) -> None:
        """Judge the cost of the programs, if there is a new figure."""
        self._control(self._engine.overhead())

    def _control(self, overhead: Overhead) -> None:
        self._controlled_at = self._clock()
        if not self._governor.judge(overhead, self._pressure()):
            return
        effort = self._governor.effort
        self._engine.sample(effort.packets, effort.slices)
        try:
            self._engine.stop(self._governor.stopped)
        except EngineError as error:
            log.warning("%s; trying again with the next change", error)

    def _gather(self, homes: Iterable[Home]) -> None:
        """Add the counters of these network namespaces and targets to the accounts."""
        homes = frozenset(homes)
        found = [place for inode, place in self._namespaces.items() if inode in homes]
        self._collector.add_netns(self._evidence.of_namespaces(found))
        targets = {selector: facts for selector, facts in self._facts.items() if selector in homes}
        self._collector.add_cgroups(self._evidence.of_cgroups(targets))

    @property
    def sampling_ratio(self) -> float:
        """The share of the packets that is measured."""
        return self._governor.ratio

    def close(self) -> None:
        """Close the sources of evidence."""
        self._evidence.close()

    # For reports

    async def until_due(self) -> None:
        """Wait until a probe is due."""
        while not self._collector.is_due(self._last) and not self.windows.due:
            self._were_taken.clear()
            await self._were_taken.wait()

    def report_again(self) -> None:
        """Make the newest summaries due once more."""
        self.windows.take_again()
        self._were_taken.set()

    def take_figures(self) -> list[ProbeFigures]:
        """Take the figures of all probes without a window that are due."""
        return self._collector.take(self._last)

    def put_back(self, figures: Sequence[ProbeFigures]) -> None:
        """Undo `take_figures` for figures that were not delivered."""
        self._collector.put_back(figures)

    def take_overhead(self, *, by_hook: bool) -> ProgramsOverhead:
        """Return the programs' mean cost since the last call.

        `by_hook`: with the last figure of each hook.
        """
        last = self._last_overhead
        hooks = last.hooks if by_hook else ()
        return ProgramsOverhead(
            self._overhead.take(),
            last.dispatch.ns,
            last.dispatch.reason,
            tuple(module for module in Module if module in self._governor.stopped),
            tuple(HookOverhead(each.hook, each.cpu_percent, each.is_permanent) for each in hooks),
        )
