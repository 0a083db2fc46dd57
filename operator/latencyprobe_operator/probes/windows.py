"""Windows over the reports on one probe: of each pod and node, and of all pods together.

Ten thousand pods must fit, so a pod's window keeps its figures packed, in at most SLOTS entries for
any length. It unpacks them for the few pods that are shown. A node's window does the same. The
window over all pods adds up as reports arrive. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from latencyprobe.domain.histogram import EMPTY, LARGEST_BUCKET, LARGEST_SUM, Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    StageMeasurement,
    joint_counters,
    largest_counters,
    total,
)
from latencyprobe.protocol.packed import pack, pack_node, unpack, unpack_node, unpack_stages

SLOTS = 12
# Reports come an interval apart, more or less: a report later than this part of a slot after its
# beginning belongs to the next slot.
_SLOT_FILLED = 0.75
TOTALS = ("rx.total", "tx.total")
# Of one window. An agent's message holds as many, but agents may report other names each time.
MAX_COUNTERS = 256


def slot_s(interval_s: float, window_s: float) -> float:
    """Return the longest time that one entry of a window stands for."""
    return max(interval_s, window_s / SLOTS)


@dataclass(slots=True)
class _Entry:
    began: float
    ended: float
    packed: bytes


class PodWindow:
    """The figures of one pod over the window, packed."""

    __slots__ = ("_entries", "_severity", "_severity_until")

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._severity: tuple[int, int] = (0, 0)
        self._severity_until = 0.0

    def add(self, measurement: Measurement, *, slot: float, at: float) -> None:
        """Take in a measurement that ends at `at`; those within one slot become one entry."""
        if last := _open_entry(self._entries, slot=slot, at=at):
            last.packed = pack(unpack(last.packed) + measurement)
            last.ended = at
        else:
            self._entries.append(_Entry(at, at, pack(measurement)))
        self._severity_until = 0.0

    def measurement(self, *, window: float, at: float) -> Measurement:
        """Return the sum of the entries in the window."""
        _forget(self._entries, at - window)
        return _bounded(total(unpack(entry.packed) for entry in self._entries))

    def severity(self, *, window: float, slot: float, at: float) -> tuple[int, int]:
        """Return the sort key of pods: the p99 of rx.total, or tx.total, and its samples.

        It is as of `at`, or of up to two slots before: sorting ten thousand pods must not unpack
        them all. A pod that still reports got its key with its last report.
        """
        if self._severity_until <= at:
            _forget(self._entries, at - window)
            whole = _total_of(entry.packed for entry in self._entries)
            self._severity = (whole.percentile(99), whole.count)
            self._severity_until = at + 2 * slot
        return self._severity


@dataclass(slots=True)
class _NodeEntry:
    began: float
    ended: float
    counters: dict[str, int]
    slowest_ns: int
    stages: bytes


class NodeWindow:
    """The figures of one node over the window; its stages packed."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: deque[_NodeEntry] = deque()

    def add(self, measurement: NodeMeasurement, *, slot: float, at: float) -> None:
        """Take in a measurement that ends at `at`; those within one slot become one entry."""
        slowest_ns = max(
            (stage.histogram.percentile(99) for stage in measurement.stages.values()), default=0
        )
        counters = dict(measurement.counters)
        last = _open_entry(self._entries, slot=slot, at=at)
        if last is None:
            stages = pack_node(measurement.stages)
            self._entries.append(_NodeEntry(at, at, counters, slowest_ns, stages))
            return
        last.ended = at
        last.counters = largest_counters(joint_counters(last.counters, counters), MAX_COUNTERS)
        last.slowest_ns = max(last.slowest_ns, slowest_ns)
        if measurement.stages:
            both = NodeMeasurement(unpack_node(last.stages)) + NodeMeasurement(measurement.stages)
            last.stages = pack_node(both.stages)

    def counters(self, *, window: float, at: float) -> dict[str, int]:
        """Return the sum of the counters in the window; no stage is unpacked."""
        _forget(self._entries, at - window)
        result: dict[str, int] = {}
        for entry in self._entries:
            result = joint_counters(result, entry.counters)
        return largest_counters(result, MAX_COUNTERS)

    def rank(self, *, window: float, at: float) -> tuple[int, int]:
        """Return the sort key of nodes: the number of failures, then the slowest p99."""
        troubles = sum(self.counters(window=window, at=at).values())
        return troubles, max((entry.slowest_ns for entry in self._entries), default=0)

    def measurement(self, *, window: float, at: float) -> NodeMeasurement:
        """Return the sum of the entries in the window."""
        result = NodeMeasurement(counters=self.counters(window=window, at=at))
        for entry in self._entries:
            result += NodeMeasurement(unpack_node(entry.stages))
        return result


_AnyEntry = TypeVar("_AnyEntry", _Entry, _NodeEntry)


def _open_entry(entries: deque[_AnyEntry], *, slot: float, at: float) -> _AnyEntry | None:
    """Return the entry that a measurement of now belongs to; None: it begins a new one."""
    last = entries[-1] if entries else None
    return last if last and at - last.began < slot * _SLOT_FILLED else None


def _bounded(measurement: Measurement) -> Measurement:
    """Return the measurement with its largest counters."""
    return replace(
        measurement,
        counters=largest_counters(measurement.counters, MAX_COUNTERS),
        netns_counters=largest_counters(measurement.netns_counters, MAX_COUNTERS),
    )


def _forget(entries: deque[_AnyEntry], before: float) -> None:
    while entries and entries[0].ended <= before:
        entries.popleft()


def _total_of(entries: Iterable[bytes]) -> Histogram:
    """rx.total, or tx.total where nothing was received, of all entries."""
    sums = dict.fromkeys(TOTALS, EMPTY)
    for packed in entries:
        for name, measured in unpack_stages(packed, TOTALS).items():
            sums[name] += measured.histogram
    return headline(sums["rx.total"], sums["tx.total"])


def of_one_pod(one: Measurement, other: Measurement) -> Measurement:
    """Add up the measurements of two containers of a pod in the same time.

    They share a network namespace: both have counted the same events there. A container that
    started later has counted fewer.
    """
    mine, theirs = one.netns_counters, other.netns_counters
    netns = {name: max(mine.get(name, 0), theirs.get(name, 0)) for name in (*mine, *theirs)}
    return replace(one + other, netns_counters=netns)


def headline(received: Histogram, sent: Histogram) -> Histogram:
    """Return the total that stands for a target: rx.total, or tx.total if nothing was received."""
    return received if received.count else sent


@dataclass(slots=True)
class _StageSum:
    """A stage's running sum. Mutable, since copies would take most of an operator's time."""

    buckets: dict[int, int] = field(default_factory=dict)
    sum_ns: int = 0
    min_ns: int | None = None
    max_ns: int = 0
    samples: int = 0
    packets: float = 0.0
    lost: int = 0
    unmatched: int = 0
    clamped: int = 0
    lowest_ratio: float = 1.0

    def add(self, measured: StageMeasurement) -> None:
        histogram = measured.histogram
        self.lost += measured.lost
        self.unmatched += measured.unmatched
        self.clamped += measured.clamped
        self.lowest_ratio = min(self.lowest_ratio, measured.sampling_ratio)
        if not histogram.count:
            return
        for position, count in histogram.buckets.items():
            self.buckets[position] = self.buckets.get(position, 0) + count
        self.sum_ns += histogram.sum_ns
        self.min_ns = (
            histogram.min_ns if self.min_ns is None else min(self.min_ns, histogram.min_ns)
        )
        self.max_ns = max(self.max_ns, histogram.max_ns)
        self.samples += histogram.count
        self.packets += histogram.count / measured.sampling_ratio

    def value(self) -> StageMeasurement:
        ratio = min(self.samples / self.packets, 1.0) if self.samples else self.lowest_ratio
        buckets = {where: min(count, LARGEST_BUCKET) for where, count in self.buckets.items()}
        sum_ns = min(self.sum_ns, LARGEST_SUM)
        histogram = Histogram(buckets, sum_ns, self.min_ns or 0, self.max_ns)
        lost, unmatched, clamped = (
            min(count, LARGEST_SUM) for count in (self.lost, self.unmatched, self.clamped)
        )
        return StageMeasurement(histogram, lost, unmatched, clamped, ratio)


class _Slot:
    """The sum over all pods of the measurements of one slot of time.

    It lacks the network namespaces' counters: pods of the host's network share theirs.
    """

    __slots__ = ("_counters", "_stages", "began", "ended")

    def __init__(self, began: float) -> None:
        self.began = self.ended = began
        self._stages: dict[str, _StageSum] = {}
        self._counters: dict[str, int] = {}

    def add(self, measurement: Measurement, *, at: float) -> None:
        self.ended = at
        for name, measured in measurement.stages.items():
            if name not in self._stages:
                self._stages[name] = _StageSum()
            self._stages[name].add(measured)
        for name, count in measurement.counters.items():
            self._counters[name] = self._counters.get(name, 0) + count
        if len(self._counters) > 2 * MAX_COUNTERS:
            self._counters = largest_counters(self._counters, MAX_COUNTERS)

    def value(self) -> Measurement:
        stages = {name: each.value() for name, each in self._stages.items()}
        counters = {name: min(count, LARGEST_SUM) for name, count in self._counters.items()}
        return Measurement(stages, counters)


class ProbeWindows:
    """The figures of one probe: of each of its pods and nodes, and of all pods together."""

    def __init__(self, interval_s: float, window_s: float) -> None:
        self._window = window_s
        self._slot = slot_s(interval_s, window_s)
        self._pods: dict[str, PodWindow] = {}
        self._nodes: dict[str, NodeWindow] = {}
        self._slots: deque[_Slot] = deque()

    def resize(self, interval_s: float, window_s: float) -> None:
        """Change the lengths; the next read forgets the entries that no longer fit."""
        self._window = window_s
        self._slot = slot_s(interval_s, window_s)

    def add(self, pod_uid: str, measurement: Measurement, *, at: float) -> None:
        """Take in the measurement of one of a pod's containers that ends at `at`."""
        if not measurement:
            return
        pod = self._pods.setdefault(pod_uid, PodWindow())
        pod.add(measurement, slot=self._slot, at=at)
        pod.severity(window=self._window, slot=self._slot, at=at)  # while it is one pod's work
        if not self._slots or at - self._slots[-1].began >= self._slot * _SLOT_FILLED:
            self._slots.append(_Slot(at))
        self._slots[-1].add(measurement, at=at)

    def add_node(self, node: str, measurement: NodeMeasurement, *, at: float) -> None:
        """Take in the measurement of a node that ends at `at`."""
        if measurement:
            self._nodes.setdefault(node, NodeWindow()).add(measurement, slot=self._slot, at=at)

    def forget(self, pod_uid: str) -> None:
        """Drop a pod that the probe no longer selects. The sum keeps its measurements."""
        self._pods.pop(pod_uid, None)

    def clear(self) -> None:
        """Drop everything: another measurement begins."""
        self._pods.clear()
        self._nodes.clear()
        self._slots.clear()

    def merged(self, *, at: float) -> Measurement:
        """Return the sum over all pods, over the window."""
        while self._slots and self._slots[0].ended <= at - self._window:
            self._slots.popleft()
        return _bounded(total(slot.value() for slot in self._slots))

    def of_pod(self, pod_uid: str, *, at: float) -> Measurement:
        """Return the measurement of one pod over the window."""
        pod = self._pods.get(pod_uid)
        return pod.measurement(window=self._window, at=at) if pod else Measurement()

    def of_nodes(self, *, most: int, at: float) -> dict[str, NodeMeasurement]:
        """Return the measurements of the nodes over the window: their counters, if there are any.

        As many nodes as are shown, the worst first, have their stages too. Unpacking those of a
        thousand nodes would take longer than their next reports.
        """
        worst = heapq.nlargest(
            most,
            self._nodes.items(),
            key=lambda each: each[1].rank(window=self._window, at=at),
        )
        found = {
            name: NodeMeasurement(counters=window.counters(window=self._window, at=at))
            for name, window in self._nodes.items()
        }
        for name, window in worst:
            found[name] = window.measurement(window=self._window, at=at)
        return {name: measurement for name, measurement in found.items() if measurement}

    def keep_nodes(self, nodes: Collection[str]) -> None:
        """Drop the nodes that no pod of the probe runs on any more."""
        for gone in self._nodes.keys() - set(nodes):
            del self._nodes[gone]

    def worst_first(self, pod_uids: Collection[str], *, at: float) -> list[str]:
        """Sort these pods by the p99 of their rx.total (or tx.total), the slowest first.

        The p99 may be one of up to two slots ago: sort the shown pods again.
        """
        return sorted(pod_uids, key=lambda uid: (*self._key(uid, at), uid))

    def _key(self, pod_uid: str, at: float) -> tuple[int, int]:
        pod = self._pods.get(pod_uid)
        if pod is None:
            return (0, 0)
        p99_ns, samples = pod.severity(window=self._window, slot=self._slot, at=at)
        return (-p99_ns, -samples)
