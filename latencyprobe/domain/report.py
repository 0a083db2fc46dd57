"""The report on a target or on a node.

The names and the order of the fields are API (`mean_ns` as `meanNs`, see `serialisation`). The CR's
status and `-o json` have the same fields, and other programs read them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.measurement import (
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    StageMeasurement,
)
from latencyprobe.domain.patience import Peer, peers_of
from latencyprobe.domain.pending import Pending, pending_of
from latencyprobe.domain.serialisation import written
from latencyprobe.domain.stages import (
    BY_NAME,
    CGROUP_COUNTERS,
    COUNTERS,
    INDEX,
    PENDING,
    Module,
    Stage,
    counters_of,
    is_counter_of,
    listed_counters,
    stages_of,
)
from latencyprobe.domain.verdict import Verdict, judge

API_VERSION = "latencyprobe.io/v1alpha1"
_LISTED = frozenset(counter.name for counter in COUNTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """The figures of one stage. Times are nanoseconds.

    `detail`: the interrupt handler or softirq vector of a node's stage. `share_percent`: None if
    the stage is not part of a total. Large, because each field is one of the API's.
    """

    name: str
    detail: str = field(default="", metadata=written(absent_if_empty=True))
    count: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int
    share_percent: float | None
    lost: int
    unmatched: int
    clamped: int
    sampling_ratio: float


@dataclass(frozen=True, slots=True)
class TargetReport:
    """Stages, counters and verdict of one target over one window.

    `netns_counters`: events in its network namespaces, of the target or of others; no zeroes.
    `pending`: waiting that has not ended, by kind; None if that cannot be read. `peers`: those that
    requests wait for, the worst first. `cgroups`: of `waitedForCgroup.ID`, those that are known.
    """

    stages: Sequence[StageReport]
    counters: Mapping[str, int]
    netns_counters: Mapping[str, int]
    verdict: Verdict
    pending: Mapping[str, Pending] | None = None
    peers: Sequence[Peer] = field(default=(), metadata=written(absent_if_empty=True))
    cgroups: Sequence[Cgroup] = field(default=(), metadata=written(absent_if_empty=True))

    def stage(self, name: str) -> StageReport | None:
        """Return the stage of this name, or None if it was not measured."""
        return next((stage for stage in self.stages if stage.name == name), None)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Stages and counters of a node over one window; no zeroes."""

    stages: tuple[StageReport, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stages) or bool(self.counters)


def report_on_node(measurement: NodeMeasurement, modules: Iterable[Module]) -> NodeReport:
    """Return the report on a node: its stages of these modules, the costliest details first."""
    wanted = set(modules)
    keys = [key for key in measurement.stages if BY_NAME[key.name].module in wanted]
    keys.sort(
        key=lambda key: (
            INDEX[key.name],
            -measurement.stages[key].histogram.sum_ns,
            key.detail,
        )
    )
    stages = tuple(_figures(key.name, measurement.stages[key], detail=key.detail) for key in keys)
    counters = {name: measurement.counters[name] for name in sorted(measurement.counters)}
    return NodeReport(stages, {name: count for name, count in counters.items() if count})


def report_on(
    measurement: Measurement,
    modules: Iterable[Module],
    node: NodeMeasurement | None = NOTHING_OF_THE_NODE,
    *,
    uncounted: Container[str] = (),
    only_stages: Container[str] | None = None,
    objectives: Sequence[Objective] = (),
) -> TargetReport:
    """Return the report on one target, with the stages of these modules that have samples.

    Modules of other probes on the same target are ignored, also by the verdict. `node`: the
    measurement of the target's node in the same window, as evidence; None: readers may not see it.
    `uncounted`: counters and stages that the node cannot measure; these counters are absent
    instead of 0. So are pending waits. `only_stages`: the stages with figures; the verdict is of
    all. `objectives`: they decide which waits the verdict finds worth attention.
    """
    wanted = frozenset(modules)
    is_pending_read = PENDING in counters_of(wanted) and PENDING not in uncounted
    pending = pending_of(measurement.pending or {}, wanted) if is_pending_read else None
    listed = [name for name in listed_counters(wanted) if name not in uncounted]
    # Without zeroes: a verdict goes through all of them several times.
    counters = {name: n for name in listed if (n := measurement.counters.get(name))}
    counters |= _others(measurement, wanted)
    seen = Measurement(
        _stages_by(wanted, measurement),
        counters,
        {name: n for name, n in sorted(measurement.netns_counters.items()) if n},
        pending,
        peers_of(measurement.peers, pending),
    )
    stages = _report_stages(seen, only_stages)
    verdict = judge(seen, node, _measuring(wanted, uncounted), objectives)
    shown = dict.fromkeys(listed, 0) | counters
    return TargetReport(stages, shown, seen.netns_counters, verdict, seen.pending, seen.peers)


def in_full(
    report: TargetReport, measurement: Measurement, modules: Iterable[Module]
) -> TargetReport:
    """Return a report of `only_stages` with all stages; its verdict is of all of them already."""
    seen = Measurement(_stages_by(frozenset(modules), measurement))
    return replace(report, stages=_report_stages(seen))


def _stages_by(
    wanted: frozenset[Module], measurement: Measurement
) -> Mapping[str, StageMeasurement]:
    """Return the stages that one of these modules measures, in their order."""
    return {
        stage.name: measurement.stages[stage.name]
        for stage in stages_of(wanted)
        if stage.name in measurement.stages
    }


def _measuring(wanted: Iterable[Module], uncounted: Container[str]) -> frozenset[Module]:
    """Return the wanted modules but those without any stage, such as those that are stopped."""
    return frozenset(stage.module for stage in stages_of(wanted) if stage.name not in uncounted)


def _others(measurement: Measurement, wanted: Container[Module]) -> dict[str, int]:
    """Return the counters above 0 that are not in COUNTERS: of cgroups, and drops by reason."""
    names = (*CGROUP_COUNTERS, *sorted(measurement.counters.keys() - CGROUP_COUNTERS.keys()))
    return {
        name: measurement.counters[name]
        for name in names
        if name not in _LISTED and measurement.counters.get(name) and is_counter_of(name, wanted)
    }


def _report_stages(
    measurement: Measurement, only_stages: Container[str] | None = None
) -> tuple[StageReport, ...]:
    return tuple(
        _report_stage(BY_NAME[name], measurement)
        for name in measurement.stages
        if only_stages is None or name in only_stages
    )


def _report_stage(stage: Stage, measurement: Measurement) -> StageReport:
    measured = measurement.stage(stage.name)
    return _figures(stage.name, measured, share=_share_percent(stage, measured, measurement))


def _figures(
    name: str, measured: StageMeasurement, *, share: float | None = None, detail: str = ""
) -> StageReport:
    histogram = measured.histogram
    p50_ns, p90_ns, p99_ns = histogram.percentiles(50, 90, 99)
    return StageReport(
        name=name,
        detail=detail,
        count=histogram.count,
        mean_ns=histogram.mean_ns,
        p50_ns=p50_ns,
        p90_ns=p90_ns,
        p99_ns=p99_ns,
        max_ns=histogram.max_ns,
        share_percent=share,
        lost=measured.lost,
        unmatched=measured.unmatched,
        clamped=measured.clamped,
        sampling_ratio=round(measured.sampling_ratio, 6),
    )


def _share_percent(
    stage: Stage, measured: StageMeasurement, measurement: Measurement
) -> float | None:
    if stage.whole is None:
        return None
    whole_ns = measurement.stage(stage.whole).histogram.sum_ns
    return round(100 * measured.histogram.sum_ns / whole_ns, 1) if whole_ns else 0.0
