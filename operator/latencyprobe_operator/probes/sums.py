"""Sums of many nodes' measurements, added up in short steps.

The histograms of a node are rows of lanes (`latencyprobe.domain.packed_stages`): two rows of lanes
of one width are added up as two numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, POSITIONS, Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement, largest_counters
from latencyprobe.domain.packed_stages import (
    LANE_FORMATS,
    PackedStages,
    StageRow,
    lanes_of,
    pack,
)
from latencyprobe.domain.stages import STAGES

# Of one sum. An agent's message holds as many, but agents may report other names each time.
MAX_COUNTERS = 256


@dataclass(frozen=True, slots=True)
class PackedMeasurement:
    """A measurement whose stages take little memory."""

    stages: PackedStages = field(default_factory=PackedStages)
    counters: Mapping[str, int] = field(default_factory=dict)


def packed(measurement: Measurement) -> PackedMeasurement:
    """Pack a measurement; the counters of network namespaces are left out."""
    return PackedMeasurement(
        pack(measurement.stages), largest_counters(measurement.counters, MAX_COUNTERS)
    )


class _RowSum:
    """A sum of rows whose lanes have one width. Mutable, as the sum of a stage."""

    __slots__ = ("_bits", "_largest", "_limit", "_sum", "_width")

    def __init__(self, width: int) -> None:
        self._width = width
        self._bits = 8 * width
        self._limit = (1 << self._bits) - 1
        self._sum = 0
        self._largest = 0
        """No lane of the sum has more."""

    def add(self, row: StageRow) -> bool:
        """Add a row, unless a lane might overflow; return whether it was added."""
        largest = self._largest + row.largest
        if largest > self._limit:
            return False
        self._largest = largest
        self._sum += row.lanes << row.first * self._bits
        return True

    def take(self) -> tuple[int, ...]:
        """Return the sums of all positions, and begin again at 0; empty if they are all 0."""
        if not self._largest:
            return ()
        counts: tuple[int, ...] = lanes_of(self._width, POSITIONS).unpack(
            self._sum.to_bytes(POSITIONS * self._width, "little")
        )
        self._sum = self._largest = 0
        return counts


class _StageSum:
    """A stage's sum. Mutable, since copies would take most of an operator's time."""

    __slots__ = (
        "_clamped",
        "_lost",
        "_max_ns",
        "_min_ns",
        "_packets",
        "_ratio",
        "_rows",
        "_samples",
        "_sum_ns",
        "_unmatched",
        "_whole",
    )

    def __init__(self) -> None:
        self._rows = {width: _RowSum(width) for width in LANE_FORMATS}
        self._whole: Sequence[int] = ()
        """The counts of rows before, for sums beyond a lane; empty if there are none."""
        self._min_ns: int | None = None
        self._max_ns = self._sum_ns = self._samples = 0
        self._lost = self._unmatched = self._clamped = 0
        self._packets = 0.0
        self._ratio = 1.0

    def add(self, row: StageRow) -> None:
        # Unpacked at once: some 100,000 rows are added in an interval of a large cluster.
        _, _, _, width, _, samples, sum_ns, min_ns, max_ns, lost, unmatched, clamped, ratio, _ = row
        self._lost += lost
        self._unmatched += unmatched
        self._clamped += clamped
        if ratio < self._ratio and not self._samples:
            self._ratio = ratio
        if not samples:
            return
        rows = self._rows[width]
        if not rows.add(row):
            self._empty(rows)
            rows.add(row)
        self._sum_ns += sum_ns
        if self._min_ns is None or min_ns < self._min_ns:
            self._min_ns = min_ns
        self._max_ns = max(self._max_ns, max_ns)
        self._samples += samples
        self._packets += samples / ratio

    def value(self) -> StageMeasurement:
        for rows in self._rows.values():
            self._empty(rows)
        ratio = min(self._samples / self._packets, 1.0) if self._samples else self._ratio
        buckets = {position: count for position, count in enumerate(self._whole) if count}
        if buckets and max(buckets.values()) > LARGEST_BUCKET:
            buckets = {each: min(count, LARGEST_BUCKET) for each, count in buckets.items()}
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

    def _empty(self, rows: _RowSum) -> None:
        counts = rows.take()
        if counts and self._whole:
            counts = tuple(map(operator.add, self._whole, counts))
        self._whole = counts or self._whole


class RunningSum:
    """The sum of the measurements of some nodes.

    It lacks the network namespaces' counters: pods of the host's network share theirs.
    """

    def __init__(self) -> None:
        self._stages: dict[int, _StageSum] = {}
        self._counters: dict[str, int] = {}

    def add(self, measurement: PackedMeasurement) -> None:
        """Add the measurement of one node."""
        for row in measurement.stages.rows():
            if row.stage not in self._stages:
                self._stages[row.stage] = _StageSum()
            self._stages[row.stage].add(row)
        for name, count in measurement.counters.items():
            self._counters[name] = self._counters.get(name, 0) + count
        if len(self._counters) > 2 * MAX_COUNTERS:
            self._counters = largest_counters(self._counters, MAX_COUNTERS)

    def value(self) -> Measurement:
        """Return the sum so far."""
        counters = {name: min(count, LARGEST_SUM) for name, count in self._counters.items()}
        return Measurement(
            {STAGES[index].name: each.value() for index, each in self._stages.items()},
            largest_counters(counters, MAX_COUNTERS),
        )
