"""Sums of many nodes' measurements, kept in little memory and added up in short steps.

A thousand nodes' histograms as Python objects would take 70 MB: each is kept as two arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, POSITIONS, Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement, largest_counters

# Of one sum. An agent's message holds as many, but agents may report other names each time.
MAX_COUNTERS = 256


@dataclass(frozen=True, slots=True)
class _PackedStage:
    name: str
    positions: bytes
    counts: array[int]
    figures: StageMeasurement
    """All but the buckets."""
    sum_ns: int
    min_ns: int
    max_ns: int
    samples: int


@dataclass(frozen=True, slots=True)
class PackedMeasurement:
    """A measurement whose histograms are arrays."""

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
    return _PackedStage(
        name,
        bytes(histogram.buckets),
        array("Q", histogram.buckets.values()),
        StageMeasurement(
            lost=measured.lost,
            unmatched=measured.unmatched,
            clamped=measured.clamped,
            sampling_ratio=measured.sampling_ratio,
        ),
        histogram.sum_ns,
        histogram.min_ns,
        histogram.max_ns,
        histogram.count,
    )


class _StageSum:
    """A stage's sum. Mutable, since copies would take most of an operator's time."""

    __slots__ = ("_buckets", "_figures", "_max_ns", "_min_ns", "_packets", "_samples", "_sum_ns")

    def __init__(self) -> None:
        self._buckets = [0] * POSITIONS
        self._figures = StageMeasurement()
        self._min_ns: int | None = None
        self._max_ns = self._sum_ns = self._samples = 0
        self._packets = 0.0

    def add(self, stage: _PackedStage) -> None:
        self._figures += stage.figures
        if not stage.samples:
            return
        buckets = self._buckets
        for position, count in zip(stage.positions, stage.counts, strict=True):
            buckets[position] += count
        self._sum_ns += stage.sum_ns
        self._min_ns = stage.min_ns if self._min_ns is None else min(self._min_ns, stage.min_ns)
        self._max_ns = max(self._max_ns, stage.max_ns)
        self._samples += stage.samples
        self._packets += stage.samples / stage.figures.sampling_ratio

    def value(self) -> StageMeasurement:
        figures = self._figures
        ratio = min(self._samples / self._packets, 1.0) if self._samples else figures.sampling_ratio
        buckets = {
            position: min(count, LARGEST_BUCKET)
            for position, count in enumerate(self._buckets)
            if count
        }
        histogram = Histogram(
            buckets, min(self._sum_ns, LARGEST_SUM), self._min_ns or 0, self._max_ns
        )
        return StageMeasurement(histogram, figures.lost, figures.unmatched, figures.clamped, ratio)


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
