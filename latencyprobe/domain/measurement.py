"""Measurements over any span of time: the values that all sides add up.

A `Measurement` is of one target, a `NodeMeasurement` of a node as a whole. The agent reads them
from the kernel and streams them. The operator, or the local command, adds many of them into
windows. Nothing here depends on the source of the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from latencyprobe.domain.histogram import EMPTY, LARGEST_SUM, Histogram
from latencyprobe.domain.patience import Peer, joint_peers
from latencyprobe.domain.pending import Pending, joint_pending
from latencyprobe.domain.stages import CPU_PRESSURE, THROTTLING, is_duration

# Of a node as a whole: one for each interrupt handler. No message has more, nor does a sum of many.
MAX_NODE_STAGES = 4096


@dataclass(frozen=True, slots=True)
class StageMeasurement:
    """The samples of one stage, and the known losses.

    `lost`: samples dropped because a map was full. `unmatched`: one end was not seen, or both
    were over 60 s apart. `clamped`: negative durations (an earliest departure time in the
    future) counted as 0. `sampling_ratio`: the share of packets that was sampled, (0, 1].
    """

    histogram: Histogram = EMPTY
    lost: int = 0
    unmatched: int = 0
    clamped: int = 0
    sampling_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sampling_ratio <= 1:
            raise ValueError(
                f"invalid sampling ratio {self.sampling_ratio}: it must be above 0 and at most 1"
            )
        if min(self.lost, self.unmatched, self.clamped) < 0:
            raise ValueError("negative count: lost, unmatched and clamped must be 0 or more")

    def __add__(self, other: StageMeasurement) -> StageMeasurement:
        return StageMeasurement(
            self.histogram + other.histogram,
            min(self.lost + other.lost, LARGEST_SUM),
            min(self.unmatched + other.unmatched, LARGEST_SUM),
            min(self.clamped + other.clamped, LARGEST_SUM),
            _joint_ratio(self, other),
        )


def _joint_ratio(one: StageMeasurement, other: StageMeasurement) -> float:
    """Return the ratio of all samples to all packets that they represent."""
    samples = one.histogram.count + other.histogram.count
    if not samples:
        return min(one.sampling_ratio, other.sampling_ratio)
    packets = (
        one.histogram.count / one.sampling_ratio + other.histogram.count / other.sampling_ratio
    )
    return min(samples / packets, 1.0)


# The part of the node's conntrack table that is in use: a level. A sum keeps the highest.
CONNTRACK_FULL_PERCENT = "conntrackFullPercent"
_LEVELS = frozenset({CONNTRACK_FULL_PERCENT})
# The number of counters that exceeded the limit.
COUNTERS_OMITTED = "countersOmitted"
_Key = TypeVar("_Key", bound=str | tuple[str, str])


def _joint_stages(
    one: Mapping[_Key, StageMeasurement], other: Mapping[_Key, StageMeasurement]
) -> dict[_Key, StageMeasurement]:
    stages = dict(one)
    for key, measured in other.items():
        stages[key] = stages[key] + measured if key in stages else measured
    return stages


def joint_counters(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Add up two sets of counters by name; of levels keep the highest."""
    counters = dict(one)
    for name, count in other.items():
        counters[name] = min(counters.get(name, 0) + count, LARGEST_SUM)
    for name in _LEVELS & one.keys() & other.keys():
        counters[name] = max(one[name], other[name])
    return counters


def count_failures(node: Mapping[str, int]) -> int:
    """Return the number of failures that a node's counters have: all of them, but durations."""
    return sum(count for name, count in node.items() if not is_duration(name))


def largest_counters(counters: Mapping[str, int], most: int) -> dict[str, int]:
    """Return at most this number of counters, the largest; one of them counts the omitted ones.

    It adds to those that were omitted before.
    """
    if len(counters) <= most:
        return dict(counters)
    named = ((name, count) for name, count in counters.items() if name != COUNTERS_OMITTED)
    ordered = sorted(named, key=lambda each: (-each[1], each[0]))
    omitted = counters.get(COUNTERS_OMITTED, 0) + len(ordered) - (most - 1)
    return {**dict(ordered[: most - 1]), COUNTERS_OMITTED: min(omitted, LARGEST_SUM)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """All stages and counters of one target. Adds up with `+`; empty means nothing was seen.

    `netns_counters` count for the target's network namespaces, hence also for other processes in
    them. Add those of one target over time, never those of two targets.
    `pending`: a snapshot by kind, of the last reading. A sum keeps that of the later summand. None:
    it was not read, or nothing was pending before and after. `peers`: those that requests wait for,
    of the same reading.
    """

    stages: Mapping[str, StageMeasurement] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    netns_counters: Mapping[str, int] = field(default_factory=dict)
    pending: Mapping[str, Pending] | None = None
    peers: Sequence[Peer] = ()

    def __bool__(self) -> bool:
        return (
            bool(self.stages)
            or bool(self.counters)
            or bool(self.netns_counters)
            or self.pending is not None
        )

    def __add__(self, other: Measurement) -> Measurement:
        if not other:
            return self
        if not self:
            return other
        return Measurement(
            _joint_stages(self.stages, other.stages),
            joint_counters(self.counters, other.counters),
            joint_counters(self.netns_counters, other.netns_counters),
            self.pending if other.pending is None else other.pending,
            self.peers if other.pending is None else other.peers,
        )

    def stage(self, name: str) -> StageMeasurement:
        """Return the stage's measurement; an empty one if it was not seen."""
        return self.stages.get(name, _NOTHING_OF_A_STAGE)


_NOTHING_OF_A_STAGE = StageMeasurement()
NOTHING = Measurement()


def total(measurements: Iterable[Measurement]) -> Measurement:
    """Return the sum of any number of measurements."""
    result = NOTHING
    for measurement in measurements:
        result += measurement
    return result


def of_one_pod(one: Measurement, other: Measurement) -> Measurement:
    """Add up the measurements of two containers of a pod in the same time.

    They share a network namespace: both have counted the same events there. A container that
    started later has counted fewer. The same with their cgroups: the pod's is above both of them.
    What is pending in both adds up.
    """
    pending = joint_pending(one.pending, other.pending)
    return replace(
        one + other,
        counters={**joint_counters(one.counters, other.counters), **_of_one_tree(one, other)},
        netns_counters=_larger(one.netns_counters, other.netns_counters),
        pending=pending,
        peers=joint_peers(one.peers, other.peers),
    )


def _larger(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    return {
        name: min(max(mine.get(name, 0), theirs.get(name, 0)), LARGEST_SUM)
        for name in (*mine, *theirs)
    }


def _of_one_tree(one: Measurement, other: Measurement) -> dict[str, int]:
    """Return the counters of the cgroups of two containers of a pod.

    Those of a quota belong together: they are of the container that it has held up longer.
    """
    throttled = max(
        (tuple(each.counters.get(name, 0) for name in THROTTLING) for each in (one, other)),
    )
    pressure = max(each.counters.get(CPU_PRESSURE, 0) for each in (one, other))
    counters = {**dict(zip(THROTTLING, throttled, strict=True)), CPU_PRESSURE: pressure}
    return {
        name: min(count, LARGEST_SUM)
        for name, count in counters.items()
        if name in one.counters or name in other.counters
    }


def across_pods(measurement: Measurement) -> Measurement:
    """Return the part of a pod's measurement that adds up with those of other pods."""
    return replace(measurement, netns_counters={}, pending=None, peers=())


class NodeStage(NamedTuple):
    """A stage of the node. `detail`: the interrupt handler or the softirq vector."""

    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeMeasurement:
    """Stages and counters of a node as a whole. Adds up with `+`."""

    stages: Mapping[NodeStage, StageMeasurement] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stages) or bool(self.counters)

    def __add__(self, other: NodeMeasurement) -> NodeMeasurement:
        if not other:
            return self
        if not self:
            return other
        return NodeMeasurement(
            _joint_stages(self.stages, other.stages),
            joint_counters(self.counters, other.counters),
        )


NOTHING_OF_THE_NODE = NodeMeasurement()
