"""A running sum: of the measurements in a window, without unpacking them all each time.

A new measurement is added to the sum, and one that leaves the window is subtracted. All are whole
numbers, so the sum is exact. Minima, maxima and sampling ratios cannot be subtracted: each entry
keeps its own, and they are joined when the sum is read.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import add, sub, truediv
from typing import NamedTuple, TypeVar

from latencyprobe.domain.histogram import LARGEST_SUM, Histogram
from latencyprobe.domain.lanes import Lanes, LaneSum
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    StageMeasurement,
    largest_counters,
)
from latencyprobe_agent.windows.packing import PackedInterval, pack, parts_of, unpack

# Of one window; a report holds as many.
MAX_COUNTERS = 256

_Number = TypeVar("_Number", int, float)


def bounded(measurement: Measurement) -> Measurement:
    """Return the measurement with its largest counters."""
    if max(len(measurement.counters), len(measurement.netns_counters)) <= MAX_COUNTERS:
        return measurement
    return replace(
        measurement,
        counters=largest_counters(measurement.counters, MAX_COUNTERS),
        netns_counters=largest_counters(measurement.netns_counters, MAX_COUNTERS),
    )


class RunningWindow:
    """The measurements of the newest slots of time, packed, and their sum.

    The caller numbers the slots, in ascending order, and decides which are in the window.
    """

    __slots__ = ("_entries", "_sum")

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._sum = _Sum()

    @property
    def is_empty(self) -> bool:
        """True if no slot in the window has a measurement."""
        return not self._entries

    def advance(self, measurement: Measurement, *, slot: int, oldest: int) -> None:
        """Add a measurement to the newest slot, and forget the slots before `oldest`."""
        while self._entries and self._entries[0].slot < oldest:
            self._sum.subtract(self._entries.popleft().packed)
        if measurement:
            self._add(measurement, slot)
        if not self._entries:
            self._sum = _Sum()

    def value(self) -> Measurement:
        """Return the sum of all entries."""
        return (
            bounded(self._sum.value([each.packed for each in self._entries]))
            if self._entries
            else NOTHING
        )

    def _add(self, measurement: Measurement, slot: int) -> None:
        last = self._entries[-1] if self._entries else None
        if last is not None and last.slot == slot:
            after = bounded(unpack(last.packed) + measurement)
            # What an entry holds is what will be subtracted: it may have dropped small counters.
            self._sum.subtract(last.packed)
            self._entries.pop()
        else:
            after = bounded(measurement)
        self._sum.add(after)
        self._entries.append(_Entry(slot, pack(after, None if last is None else last.packed)))


class _Entry(NamedTuple):
    slot: int
    packed: PackedInterval


@dataclass(slots=True)
class _Extent:
    """The figures of one stage that cannot be subtracted, joined over entries."""

    shortest_ns: int
    longest_ns: int
    samples: int
    packets: float
    lowest_ratio: float

    @property
    def sampling_ratio(self) -> float:
        return min(self.samples / self.packets, 1.0) if self.samples else self.lowest_ratio

    def join(self, other: _Extent) -> None:
        self.shortest_ns = min(self.shortest_ns, other.shortest_ns)
        self.longest_ns = max(self.longest_ns, other.longest_ns)
        self.samples += other.samples
        self.packets += other.packets
        self.lowest_ratio = min(self.lowest_ratio, other.lowest_ratio)


def _extents(entries: Iterable[PackedInterval]) -> dict[str, _Extent]:
    # Nearly always, all entries have the same stages.
    alike: dict[tuple[str, ...], list[PackedInterval]] = defaultdict(list)
    for entry in entries:
        alike[entry.names].append(entry)
    found: dict[str, _Extent] = {}
    for names, group in alike.items():
        for name, extent in zip(names, _extents_of_group(group), strict=True):
            if name in found:
                found[name].join(extent)
            else:
                found[name] = extent
    return found


def _extents_of_group(entries: list[PackedInterval]) -> Iterator[_Extent]:
    """Yield the extents of entries with the same stages."""
    samples = [*map(sum, _by_stage(entry.samples for entry in entries))]
    packets: Iterable[float] = samples
    everything = [1.0] * len(samples)
    lowest_ratios = everything
    if any(entry.ratios for entry in entries):
        ratios = [entry.ratios or everything for entry in entries]
        lowest_ratios = [*map(min, _by_stage(ratios))]
        represented = zip((entry.samples for entry in entries), ratios, strict=True)
        packets = map(sum, _by_stage(map(truediv, *each) for each in represented))
    return map(
        _Extent,
        map(min, _by_stage(entry.shortest_ns for entry in entries)),
        map(max, _by_stage(entry.longest_ns for entry in entries)),
        samples,
        packets,
        lowest_ratios,
    )


def _by_stage(rows: Iterable[Iterable[_Number]]) -> Iterator[tuple[_Number, ...]]:
    return zip(*rows, strict=True)


class _RunningStage:
    """The sum of one stage. `others`: of durations, and of lost, unmatched and clamped samples."""

    __slots__ = ("counts", "others")

    def __init__(self) -> None:
        self.counts = LaneSum()
        self.others: tuple[int, ...] = (0, 0, 0, 0)

    def value(self, extent: _Extent) -> StageMeasurement:
        others = self.others
        if max(others) > LARGEST_SUM:
            others = tuple(min(figure, LARGEST_SUM) for figure in others)
        sum_ns, lost, unmatched, clamped = others
        shortest_ns = extent.shortest_ns if extent.samples else 0
        counts = self.counts.value(extent.samples)
        histogram = Histogram(counts, sum_ns, shortest_ns, extent.longest_ns)
        return StageMeasurement(histogram, lost, unmatched, clamped, extent.sampling_ratio)


@dataclass(slots=True)
class _Sum:
    stages: dict[str, _RunningStage] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    netns_counters: dict[str, int] = field(default_factory=dict)

    def add(self, measurement: Measurement) -> None:
        """Add a measurement."""
        for name, measured in measurement.stages.items():
            known = self.stages.get(name)
            if known is None:
                known = self.stages[name] = _RunningStage()
            histogram = measured.histogram
            known.counts.add(Lanes.of(histogram.buckets))
            figures = (histogram.sum_ns, measured.lost, measured.unmatched, measured.clamped)
            known.others = tuple(map(add, known.others, figures))
        _add(self.counters, measurement.counters)
        _add(self.netns_counters, measurement.netns_counters)

    def subtract(self, packed: PackedInterval) -> None:
        """Subtract a packed measurement that was added."""
        parts = parts_of(packed)
        for name, stage in parts.stages:
            known = self.stages[name]
            known.counts.subtract(stage.counts)
            known.others = tuple(map(sub, known.others, stage.sums))
        _subtract(self.counters, parts.counters)
        _subtract(self.netns_counters, parts.netns_counters)

    def value(self, entries: Iterable[PackedInterval]) -> Measurement:
        """Return the sum as a measurement, with the extremes and ratios of the entries."""
        return Measurement(
            {name: self.stages[name].value(extent) for name, extent in _extents(entries).items()},
            _at_most(self.counters, LARGEST_SUM),
            _at_most(self.netns_counters, LARGEST_SUM),
        )


def _add(sums: dict[str, int], counts: Mapping[str, int]) -> None:
    before = sums.get
    for key, count in counts.items():
        sums[key] = before(key, 0) + count


def _subtract(sums: dict[str, int], counts: Mapping[str, int]) -> None:
    before = sums.get
    for key, count in counts.items():
        after = before(key, 0) - count
        if after:
            sums[key] = after
        else:
            sums.pop(key, None)


def _at_most(sums: dict[str, int], largest: int) -> dict[str, int]:
    if max(sums.values(), default=0) <= largest:
        return dict(sums)
    return {key: min(count, largest) for key, count in sums.items()}
