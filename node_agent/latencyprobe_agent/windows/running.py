"""A running sum: of the measurements in a window, without unpacking them all each time.

A new measurement is added to the sum, and one that leaves the window is subtracted. All are whole
numbers, so the sum is exact. Minima, maxima and sampling ratios cannot be subtracted: each entry
keeps its own, and they are joined when the sum is read.
"""

from __future__ import annotations

import marshal
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import sub
from typing import TypeVar

from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    StageMeasurement,
    largest_counters,
)
from latencyprobe_agent.windows.packing import pack, parts_of, unpack

# Of one window; a report holds as many.
MAX_COUNTERS = 256


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
        self._entries: deque[_SlotFigures] = deque()
        self._sum = b""

    @property
    def is_empty(self) -> bool:
        """True if no slot in the window has a measurement."""
        return not self._entries

    def advance(self, measurement: Measurement, *, slot: int, oldest: int) -> None:
        """Add a measurement to the newest slot, and forget the slots before `oldest`."""
        leaves = bool(self._entries) and self._entries[0].slot < oldest
        if not measurement and not leaves:
            return
        total = _Sum.loaded(self._sum)
        while self._entries and self._entries[0].slot < oldest:
            total.subtract(self._entries.popleft().packed)
        if measurement:
            self._add(total, measurement, slot)
        self._sum = total.dumped() if self._entries else b""

    def value(self) -> Measurement:
        """Return the sum of all entries."""
        return bounded(_Sum.loaded(self._sum).value(self._entries)) if self._entries else NOTHING

    def _add(self, total: _Sum, measurement: Measurement, slot: int) -> None:
        last = self._entries[-1] if self._entries else None
        if last is not None and last.slot == slot:
            after = bounded(unpack(last.packed) + measurement)
            # What an entry holds is what will be subtracted: it may have dropped small counters.
            total.subtract(last.packed)
            self._entries.pop()
        else:
            after = bounded(measurement)
        total.add(after)
        self._entries.append(_SlotFigures.of(after, slot))


@dataclass(frozen=True, slots=True)
class _SlotFigures:
    """The measurement of one slot, packed. What cannot be subtracted stands beside it."""

    slot: int
    packed: bytes
    names: tuple[str, ...]
    shortest_ns: array[int]
    longest_ns: array[int]
    samples: array[int]
    ratios: array[float]

    @classmethod
    def of(cls, measurement: Measurement, slot: int) -> _SlotFigures:
        histograms = [measured.histogram for measured in measurement.stages.values()]
        return cls(
            slot,
            pack(measurement),
            tuple(measurement.stages),
            array("Q", [histogram.min_ns for histogram in histograms]),
            array("Q", [histogram.max_ns for histogram in histograms]),
            array("Q", [histogram.count for histogram in histograms]),
            array("d", [measured.sampling_ratio for measured in measurement.stages.values()]),
        )


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


def _extents(entries: deque[_SlotFigures]) -> dict[str, _Extent]:
    found: dict[str, _Extent] = {}
    for entry in entries:
        for name, shortest_ns, longest_ns, samples, ratio in zip(
            entry.names,
            entry.shortest_ns,
            entry.longest_ns,
            entry.samples,
            entry.ratios,
            strict=True,
        ):
            known = found.get(name)
            if known is None:
                found[name] = _Extent(shortest_ns, longest_ns, samples, samples / ratio, ratio)
                continue
            known.lowest_ratio = min(known.lowest_ratio, ratio)
            if not samples:
                continue
            if not known.samples or shortest_ns < known.shortest_ns:
                known.shortest_ns = shortest_ns
            known.longest_ns = max(known.longest_ns, longest_ns)
            known.samples += samples
            known.packets += samples / ratio
    return found


# Of one stage: samples by position, their sum, and lost, unmatched and clamped ones.
_Sums = tuple[dict[int, int], list[int]]

_Key = TypeVar("_Key", str, int)


@dataclass(slots=True)
class _Sum:
    stages: dict[str, _Sums] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    netns_counters: dict[str, int] = field(default_factory=dict)

    @classmethod
    def loaded(cls, dumped: bytes) -> _Sum:
        # Only this process writes these bytes.
        return cls(*marshal.loads(dumped)) if dumped else cls()  # noqa: S302

    def dumped(self) -> bytes:
        """Return it as bytes: as Python objects it would take ten times as much memory."""
        return marshal.dumps((self.stages, self.counters, self.netns_counters), 2)

    def add(self, measurement: Measurement) -> None:
        """Add a measurement."""
        for name, measured in measurement.stages.items():
            buckets, others = self.stages.setdefault(name, ({}, [0, 0, 0, 0]))
            _add(buckets, measured.histogram.buckets)
            others[0] += measured.histogram.sum_ns
            others[1] += measured.lost
            others[2] += measured.unmatched
            others[3] += measured.clamped
        _add(self.counters, measurement.counters)
        _add(self.netns_counters, measurement.netns_counters)

    def subtract(self, packed: bytes) -> None:
        """Subtract a packed measurement that was added."""
        parts = parts_of(packed)
        for name, stage in parts.stages.items():
            buckets, others = self.stages[name]
            _subtract(buckets, stage.buckets)
            others[:] = map(sub, others, stage.sums)
        _subtract(self.counters, parts.counters.items())
        _subtract(self.netns_counters, parts.netns_counters.items())

    def value(self, entries: deque[_SlotFigures]) -> Measurement:
        """Return the sum as a measurement, with the extremes and ratios of the entries."""
        return Measurement(
            {
                name: _stage(*self.stages[name], extent)
                for name, extent in _extents(entries).items()
            },
            _at_most(self.counters, LARGEST_SUM),
            _at_most(self.netns_counters, LARGEST_SUM),
        )


def _add(sums: dict[_Key, int], counts: Mapping[_Key, int]) -> None:
    before = sums.get
    for key, count in counts.items():
        sums[key] = before(key, 0) + count


def _subtract(sums: dict[_Key, int], counts: Iterable[tuple[_Key, int]]) -> None:
    before = sums.get
    for key, count in counts:
        after = before(key, 0) - count
        if after:
            sums[key] = after
        else:
            sums.pop(key, None)


def _at_most(sums: dict[_Key, int], largest: int) -> dict[_Key, int]:
    if max(sums.values(), default=0) <= largest:
        return sums
    return {key: min(count, largest) for key, count in sums.items()}


def _stage(buckets: dict[int, int], others: list[int], extent: _Extent) -> StageMeasurement:
    if max(others) > LARGEST_SUM:
        others = [min(figure, LARGEST_SUM) for figure in others]
    sum_ns, lost, unmatched, clamped = others
    histogram = Histogram(
        _at_most(buckets, LARGEST_BUCKET), sum_ns, extent.shortest_ns, extent.longest_ns
    )
    return StageMeasurement(histogram, lost, unmatched, clamped, extent.sampling_ratio)
