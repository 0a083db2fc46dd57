"""From readings of the engine to reports that are due.

The measurements of a reading are added up per (probe, target), and those of the node per probe. A
sum grows until the probe's interval has passed and a client reads it. Without a client it grows on:
its memory is bounded by the number of targets and stages, not by time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
)
from latencyprobe.domain.patience import peers_of
from latencyprobe.domain.pending import pending_of
from latencyprobe.domain.stages import Module, is_counter_of, stages_of
from latencyprobe_agent.desired import Desired, DesiredProbe, DesiredTarget, Selector
from latencyprobe_agent.plan import Home, TargetKey
from latencyprobe_agent.totals import Totals

# A probe may be this part of its interval early, so that probes of one interval share a reading.
_EARLY = 0.02


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of time on both clocks: seconds of the monotonic one, nanoseconds since 1970."""

    monotonic: float
    unix_ns: int


@dataclass(frozen=True, slots=True)
class ProbeFigures:
    """The measurements for one probe between two moments, by the client's target ids.

    `node`: the measurement of the node between them, for all modules; empty for a probe without
    node figures.
    """

    probe: DesiredProbe
    begin: Moment
    end: Moment
    measurements: Mapping[str, Measurement]
    node: NodeMeasurement = NOTHING_OF_THE_NODE

    def of(self, target_id: str) -> Measurement:
        """Return one target's figures, of the probe's modules."""
        return only(self.measurements.get(target_id, NOTHING), self.probe.modules)

    def of_node(self) -> NodeMeasurement:
        """Return the node's figures, of the probe's modules."""
        return only_node(self.node, self.probe.modules)


_Figures = TypeVar("_Figures", Measurement, NodeMeasurement)


class _Addend(Generic[_Figures]):
    """A delta for many accounts. Probes that share a slot share the sums as well."""

    def __init__(self, delta: _Figures) -> None:
        self._delta: _Figures = delta
        # By the identity of the first summand, which is kept so that no other takes its place.
        self._sums: dict[int, tuple[_Figures, _Figures]] = {}

    def added_to(self, before: _Figures) -> _Figures:
        """Return the sum: the same object for the same object."""
        known = self._sums.get(id(before))
        if known is None:
            known = self._sums[id(before)] = (before, before + self._delta)
        return known[1]


@dataclass(slots=True)
class _Account:
    """The measurements for one probe that are not yet reported."""

    probe: DesiredProbe
    begin: Moment
    measurements: dict[str, Measurement] = field(default_factory=dict)
    node: NodeMeasurement = NOTHING_OF_THE_NODE

    @property
    def due_at(self) -> float:
        return self.begin.monotonic + self.probe.interval_s

    def add(self, target_id: str, addend: _Addend[Measurement]) -> None:
        before = self.measurements.get(target_id, NOTHING)
        self.measurements[target_id] = addend.added_to(before)

    def is_due(self, now: Moment) -> bool:
        return now.monotonic >= self.due_at - _EARLY * self.probe.interval_s

    def take(self, now: Moment) -> ProbeFigures:
        """Return the figures, and begin again."""
        taken = ProbeFigures(self.probe, self.begin, now, self.measurements, self.node)
        self.begin, self.measurements, self.node = now, {}, NOTHING_OF_THE_NODE
        return taken


Departed = Mapping[str, Mapping[DesiredTarget, Measurement]]
"""The last figures of targets that have left a probe with a window, by the probe's id."""


class Collector:
    """The accounts of all probes. Times are the caller's.

    `totals`: the sums for metrics, of the same readings; None if no metrics are served.
    """

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = totals
        self._accounts: dict[str, _Account] = {}
        self._owners: Mapping[int, Sequence[TargetKey]] = {}
        self._homes: Mapping[TargetKey, frozenset[Home]] = {}

    def follow(self, desired: Desired, now: Moment) -> Departed:
        """Keep accounts for these probes; figures that no longer mean the same are dropped.

        Return the figures for windows that no account keeps any more.
        """
        before = self._accounts
        departed = {
            probe.id: _departed(before[probe.id], probe)
            for probe in desired.probes
            if probe.id in before
        }
        self._accounts = {
            probe.id: _carry_over(before[probe.id], probe)
            if probe.id in before and measure_alike(before[probe.id].probe, probe)
            else _Account(probe, now)
            for probe in desired.probes
        }
        if self._totals is not None:
            self._totals.follow(desired, now.monotonic)
        return departed

    def own(self, owners: Mapping[int, Sequence[TargetKey]]) -> None:
        """Add the slots' figures to these targets from now on."""
        self._owners = owners

    def settle(self, homes: Mapping[TargetKey, frozenset[Home]]) -> None:
        """Set the network namespaces and the cgroups of the targets from now on."""
        self._homes = homes

    def moved(self, homes: Mapping[TargetKey, frozenset[Home]]) -> frozenset[Home]:
        """Return the homes that a target would enter or leave with these."""
        nowhere: frozenset[Home] = frozenset()
        return nowhere.union(
            *(
                self._homes.get(key, nowhere) ^ homes.get(key, nowhere)
                for key in self._homes.keys() | homes.keys()
            )
        )

    def due_homes(self, now: Moment) -> frozenset[Home]:
        """Return the homes of the targets whose probes are due."""
        due = {name for name, account in self._accounts.items() if account.is_due(now)}
        return frozenset().union(
            *(homes for key, homes in self._homes.items() if key.probe_id in due)
        )

    def add_netns(self, deltas: Mapping[int, Mapping[str, int]]) -> None:
        """Add the counters of network namespaces to every target in them."""
        self._add_at_homes(
            {inode: Measurement(netns_counters=counters) for inode, counters in deltas.items()}
        )

    def add_cgroups(self, deltas: Mapping[Selector, Mapping[str, int]]) -> None:
        """Add the counters of the cgroups of targets to every probe that measures them."""
        self._add_at_homes(
            {selector: Measurement(counters=counters) for selector, counters in deltas.items()}
        )

    def _add_at_homes(self, deltas: Mapping[Any, Measurement]) -> None:
        addends = {home: _Addend(delta) for home, delta in deltas.items()}
        for key, homes in self._homes.items():
            account = self._accounts.get(key.probe_id)
            if account is not None:
                for home in addends.keys() & homes:
                    account.add(key.target_id, addends[home])

    def add(self, deltas: Mapping[int, Measurement]) -> None:
        """Add a reading."""
        for slot, delta in deltas.items():
            addend = _Addend(delta)
            for owner in self._owners.get(slot, ()):
                account = self._accounts.get(owner.probe_id)
                if account is not None:
                    account.add(owner.target_id, addend)
                    if self._totals is not None:
                        self._totals.add(owner, only(delta, account.probe.modules))

    def add_node(self, delta: NodeMeasurement) -> None:
        """Add a measurement of the node, for every probe that has node figures."""
        addend = _Addend(delta)
        for account in self._accounts.values():
            if account.probe.node_figures:
                account.node = addend.added_to(account.node)

    @property
    def next_due(self) -> float | None:
        """The time when the next probe is due; None without probes."""
        return min((account.due_at for account in self._accounts.values()), default=None)

    @property
    def shortest_interval(self) -> float | None:
        """The smallest interval of all probes."""
        return min((a.probe.interval_s for a in self._accounts.values()), default=None)

    def is_due(self, now: Moment) -> bool:
        """Return True if a probe without a window is due."""
        return any(
            account.probe.window is None and account.is_due(now)
            for account in self._accounts.values()
        )

    def take(self, now: Moment) -> list[ProbeFigures]:
        """Return the figures of the probes without a window that are due; reset their accounts."""
        return [
            account.take(now)
            for account in self._accounts.values()
            if account.probe.window is None and account.is_due(now)
        ]

    def take_for_windows(self, now: Moment, *, early: bool = False) -> list[ProbeFigures]:
        """Return the figures of the probes with a window that are due; reset their accounts.

        `early`: also of those that are not due yet.
        """
        return [
            account.take(now)
            for account in self._accounts.values()
            if account.probe.window is not None and (early or account.is_due(now))
        ]

    def put_back(self, figures: Sequence[ProbeFigures]) -> None:
        """Undo `take` for figures that were not delivered; the next report includes them."""
        for taken in figures:
            account = self._accounts.get(taken.probe.id)
            if account is None or not measure_alike(taken.probe, account.probe):
                continue
            account.begin = taken.begin
            account.node = taken.node + account.node
            kept = _still_meant(taken.measurements, taken.probe, account.probe)
            for target_id, measurement in kept.items():
                later = account.measurements.get(target_id, NOTHING)
                account.measurements[target_id] = measurement + later


def _carry_over(account: _Account, probe: DesiredProbe) -> _Account:
    kept = _still_meant(account.measurements, account.probe, probe)
    return _Account(probe, account.begin, kept, account.node)


def _departed(account: _Account, after: DesiredProbe) -> Mapping[DesiredTarget, Measurement]:
    """Return the figures of targets that have left a probe whose window keeps them."""
    before = account.probe
    if after.window is None or not measure_alike(before, after):
        return {}
    selectors = {target.id: target.selector for target in after.targets}
    return {
        target: account.measurements[target.id]
        for target in before.targets
        if selectors.get(target.id) != target.selector and target.id in account.measurements
    }


def _still_meant(
    measurements: Mapping[str, Measurement], before: DesiredProbe, after: DesiredProbe
) -> dict[str, Measurement]:
    """Return the figures of the targets that are the same in both versions of a probe."""
    selectors = {target.id: target.selector for target in before.targets}
    same = {t.id for t in after.targets if selectors.get(t.id) == t.selector}
    return {target_id: m for target_id, m in measurements.items() if target_id in same}


def measure_alike(before: DesiredProbe, after: DesiredProbe) -> bool:
    """Return True if figures of both versions of a probe mean the same."""
    return _meaning(before) == _meaning(after)


def _meaning(probe: DesiredProbe) -> tuple[object, ...]:
    return probe.socket_filter, probe.modules, probe.node_figures


def only(measurement: Measurement, modules: frozenset[Module]) -> Measurement:
    """Keep the figures of these modules, and all counters of the cgroups and the namespace."""
    names = {stage.name for stage in stages_of(modules)}
    pending = None if measurement.pending is None else pending_of(measurement.pending, modules)
    return Measurement(
        {name: s for name, s in measurement.stages.items() if name in names},
        {name: n for name, n in measurement.counters.items() if is_counter_of(name, modules)},
        measurement.netns_counters,
        pending,
        peers_of(measurement.peers, pending),
    )


def only_node(measurement: NodeMeasurement, modules: frozenset[Module]) -> NodeMeasurement:
    """Keep the node's stages of these modules, and all its counters."""
    names = {stage.name for stage in stages_of(modules)}
    stages = {key: measured for key, measured in measurement.stages.items() if key.name in names}
    return NodeMeasurement(stages, measurement.counters)


class OverheadMeter:
    """The mean of readings of our programs' cost since the last report; None: unknown."""

    def __init__(self) -> None:
        self._busy = 0.0
        self._elapsed_s = 0.0

    def note(self, cpu_percent: float | None, elapsed_s: float) -> None:
        """Add the engine's figure for the last `elapsed_s`."""
        if cpu_percent is not None and elapsed_s > 0:
            self._busy += cpu_percent * elapsed_s
            self._elapsed_s += elapsed_s

    def take(self) -> float | None:
        """Return the mean since the last call."""
        mean = self._busy / self._elapsed_s if self._elapsed_s else None
        self._busy = self._elapsed_s = 0.0
        return mean
