"""The sum of the measurements of many pods in the same time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from latencyprobe.domain.histogram import LARGEST_SUM, Histogram
from latencyprobe.domain.lanes import Lanes
from latencyprobe.domain.measurement import Measurement, StageMeasurement, joint_counters


def merged(measurements: Iterable[Measurement]) -> Measurement:
    """Return the sum of these measurements. Copies no histogram, unlike `total`."""
    stages: dict[str, _MergedStage] = {}
    counters: dict[str, int] = {}
    for measurement in measurements:
        for name, measured in measurement.stages.items():
            stages.setdefault(name, _MergedStage()).add(measured)
        counters = joint_counters(counters, measurement.counters)
    return Measurement({name: each.value() for name, each in stages.items()}, counters)


@dataclass(slots=True)
class _MergedStage:
    buckets: Lanes = field(default_factory=Lanes)
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
        self.buckets += Lanes.of(histogram.buckets)
        self.sum_ns += histogram.sum_ns
        self.min_ns = (
            histogram.min_ns if self.min_ns is None else min(self.min_ns, histogram.min_ns)
        )
        self.max_ns = max(self.max_ns, histogram.max_ns)
        self.samples += histogram.count
        self.packets += histogram.count / measured.sampling_ratio

    def value(self) -> StageMeasurement:
        ratio = min(self.samples / self.packets, 1.0) if self.samples else self.lowest_ratio
        histogram = Histogram(
            self.buckets, min(self.sum_ns, LARGEST_SUM), self.min_ns or 0, self.max_ns
        )
        lost, unmatched, clamped = (
            min(count, LARGEST_SUM) for count in (self.lost, self.unmatched, self.clamped)
        )
        return StageMeasurement(histogram, lost, unmatched, clamped, ratio)
