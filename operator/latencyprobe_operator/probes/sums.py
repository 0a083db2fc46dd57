"""Sums of many nodes' measurements, kept in little memory and added up in short steps.

A thousand nodes' histograms as Python objects would take 70 MB: each is kept as one large number.
Each bucket has a *lane* of 64 bits in it. An addition of two such numbers adds all their buckets.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, POSITIONS, Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement, largest_counters

# Of one sum. An agent's message holds as many, but agents may report other names each time.
MAX_COUNTERS = 256
_LANE_BYTES = 8
_LANE_BITS = 8 * _LANE_BYTES
_LARGEST_LANE = (1 << _LANE_BITS) - 1


class _PackedStage(NamedTuple):
    """A stage's figures. `row` has a lane for each bucket, `first` is the position of its lowest.

    `packets`: the number of packets that the samples represent.
    """

    name: str
    first: int
    row: int
    sum_ns: int
    min_ns: int
    max_ns: int
    samples: int
    packets: float
    lost: int
    unmatched: int
    clamped: int
    sampling_ratio: float


@dataclass(frozen=True, slots=True)
class PackedMeasurement:
    """A measurement whose histograms are rows of lanes."""

    stages: tuple[_PackedStage, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


def packed(measurement: Measurement) -> PackedMeasurement:
    """Pack a measurement; the counters of network namespaces are left out."""
    return PackedMeasurement(
        tuple(_pack(name, measured) for name, measured in measurement.stages.items()),
        largest_counters(measurement.counters, MAX_COUNTERS),
    )


def _pack(name: str, measured: StageMeasurement) -> _PackedStage:
    histogram = measured.histogram
    first, row = _row_of(histogram.buckets)
    return _PackedStage(
        name,
        first,
        row,
        histogram.sum_ns,
        histogram.min_ns,
        histogram.max_ns,
        histogram.count,
        histogram.count / measured.sampling_ratio,
        measured.lost,
        measured.unmatched,
        measured.clamped,
        measured.sampling_ratio,
    )


def _row_of(buckets: Mapping[int, int]) -> tuple[int, int]:
    """Return the lowest position, and a lane for each position from there on."""
    if not buckets:
        return 0, 0
    first, last = min(buckets), max(buckets)
    counts: Iterable[int]
    if last - first + 1 == len(buckets):
        counts = map(buckets.__getitem__, range(first, last + 1))
    else:
        counts = (buckets.get(each, 0) for each in range(first, last + 1))
    return first, int.from_bytes(struct.pack(f"<{last - first + 1}Q", *counts), "little")


class _StageSum:
    """A stage's sum. Mutable, since copies would take most of an operator's time."""

    __slots__ = (
        "_clamped",
        "_in_row",
        "_lost",
        "_max_ns",
        "_min_ns",
        "_packets",
        "_ratio",
        "_row",
        "_samples",
        "_sum_ns",
        "_unmatched",
        "_whole",
    )

    def __init__(self) -> None:
        self._row = 0
        self._in_row = 0
        """The number of samples in the row: no lane has more."""
        self._whole = [0] * POSITIONS
        """The counts of rows before, for sums beyond a lane."""
        self._min_ns: int | None = None
        self._max_ns = self._sum_ns = self._samples = 0
        self._lost = self._unmatched = self._clamped = 0
        self._packets = 0.0
        self._ratio = 1.0

    def add(self, stage: _PackedStage) -> None:
        (_, first, row, sum_ns, min_ns, max_ns, samples, packets, *losses, ratio) = stage
        lost, unmatched, clamped = losses
        self._lost += lost
        self._unmatched += unmatched
        self._clamped += clamped
        if ratio < self._ratio and not self._samples:
            self._ratio = ratio
        if not samples:
            return
        self._in_row += samples
        if self._in_row > _LARGEST_LANE:
            self._empty_row()
            self._in_row = samples
        self._row += row << first * _LANE_BITS
        self._sum_ns += sum_ns
        if self._min_ns is None or min_ns < self._min_ns:
            self._min_ns = min_ns
        self._max_ns = max(self._max_ns, max_ns)
        self._samples += samples
        self._packets += packets

    def value(self) -> StageMeasurement:
        self._empty_row()
        ratio = min(self._samples / self._packets, 1.0) if self._samples else self._ratio
        buckets = {
            position: min(count, LARGEST_BUCKET)
            for position, count in enumerate(self._whole)
            if count
        }
        histogram = Histogram(
            buckets, min(self._sum_ns, LARGEST_SUM), self._min_ns or 0, self._max_ns
        )
        return StageMeasurement(
            histogram,
            min(self._lost, LARGEST_SUM),
            min(self._unmatched, LARGEST_SUM),
            min(self._clamped, LARGEST_SUM),
            ratio,
        )

    def _empty_row(self) -> None:
        lanes = struct.unpack(
            f"<{POSITIONS}Q", self._row.to_bytes(POSITIONS * _LANE_BYTES, "little")
        )
        self._whole = list(map(operator.add, self._whole, lanes))
        self._row = self._in_row = 0


class RunningSum:
    """The sum of the measurements of some nodes.

    It lacks the network namespaces' counters: pods of the host's network share theirs.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _StageSum] = {}
        self._counters: dict[str, int] = {}

    def add(self, measurement: PackedMeasurement) -> None:
        """Add the measurement of one node."""
        for stage in measurement.stages:
            if stage.name not in self._stages:
                self._stages[stage.name] = _StageSum()
            self._stages[stage.name].add(stage)
        for name, count in measurement.counters.items():
            self._counters[name] = self._counters.get(name, 0) + count
        if len(self._counters) > 2 * MAX_COUNTERS:
            self._counters = largest_counters(self._counters, MAX_COUNTERS)

    def value(self) -> Measurement:
        """Return the sum so far."""
        counters = {name: min(count, LARGEST_SUM) for name, count in self._counters.items()}
        return Measurement(
            {name: each.value() for name, each in self._stages.items()},
            largest_counters(counters, MAX_COUNTERS),
        )
