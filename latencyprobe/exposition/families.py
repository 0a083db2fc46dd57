"""Families of metrics that the library has no class for, and label values that nothing can break.

A *native* histogram has the buckets of `domain.histogram`, each under its own index: a copy, not a
conversion. Formats without native histograms get *classic* buckets, a coarse set of the same
bounds, so that their counts are exact too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from prometheus_client import samples
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from latencyprobe.domain.histogram import (
    BUCKETS_PER_OCTAVE,
    FIRST_BUCKET,
    OVERFLOW,
    SCHEMA,
    UNDERFLOW,
    position_of,
)
from latencyprobe.printable import bounded

# The index of the bucket that ends at infinity, behind the one that ends at 2**1024: what
# client_golang has for observations above all numbers.
_INFINITE_BUCKET = 1024 * BUCKETS_PER_OCTAVE + 1
ZERO_THRESHOLD_S = 2.0 ** ((FIRST_BUCKET - 1) / BUCKETS_PER_OCTAVE)
# Powers of 2 in seconds: from 0.95 us to 64 s, a factor of 4 apart.
_CLASSIC_EXPONENTS = range(-20, 7, 2)
_CLASSIC_POSITIONS = tuple(
    exponent * BUCKETS_PER_OCTAVE - FIRST_BUCKET + 1 for exponent in _CLASSIC_EXPONENTS
)
_CLASSIC_BOUNDS = tuple(repr(2.0**exponent) for exponent in _CLASSIC_EXPONENTS)
MAX_LABEL_LENGTH = 512
# Names and values of an exemplar's labels together (OpenMetrics 1.0, "Exemplars").
MAX_EXEMPLAR_LENGTH = 128

Labels = Mapping[str, str]


def label_value(text: str) -> str:
    """Return a label's value that all formats can hold, of a text that strangers may choose."""
    return bounded(text, MAX_LABEL_LENGTH)


def exemplar_labels(labels: Iterable[tuple[str, str]]) -> Labels:
    """Return the labels that an exemplar has room for, the first ones before the others."""
    kept: dict[str, str] = {}
    room = MAX_EXEMPLAR_LENGTH
    for name, value in labels:
        length = len(name) + len(value)
        if length <= room:
            kept[name] = value
            room -= length
    return kept


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One sample of a histogram. `unix_ns`: its end, in nanoseconds since 1970."""

    labels: Labels
    duration_ns: int
    unix_ns: int


class Durations(Protocol):
    """Samples of a duration by position, as a histogram has them."""

    @property
    def buckets(self) -> Mapping[int, int]:
        """The number of samples by position."""

    @property
    def sum_ns(self) -> int:
        """The sum of all samples."""


@dataclass(frozen=True, slots=True)
class NativeSpan:
    """Neighbouring buckets. `gap`: buckets without a sample before them."""

    gap: int
    length: int


@dataclass(frozen=True, slots=True)
class NativeBuckets:
    """Buckets as a native histogram has them.

    `deltas`: each count less the one before it. The first span's gap is its index.
    """

    zero_count: int
    spans: Sequence[NativeSpan]
    deltas: Sequence[int]


def native_buckets(buckets: Mapping[int, int]) -> NativeBuckets:
    """Return the native buckets of counts by position."""
    spans: list[NativeSpan] = []
    deltas: list[int] = []
    end = before = begin = length = 0
    for position in sorted(buckets):
        if position == UNDERFLOW:
            continue
        index = _INFINITE_BUCKET if position == OVERFLOW else FIRST_BUCKET - 1 + position
        if not length or index != begin + length:
            if length:
                spans.append(NativeSpan(begin - end, length))
                end = begin + length
            begin, length = index, 0
        length += 1
        deltas.append(buckets[position] - before)
        before = buckets[position]
    if length:
        spans.append(NativeSpan(begin - end, length))
    return NativeBuckets(buckets.get(UNDERFLOW, 0), spans, deltas)


@dataclass(frozen=True, slots=True)
class StageHistogram:
    """One histogram of a family.

    `exemplars`: oldest first. `began_s`: see StageHistograms.add().
    """

    labels: Labels
    durations: Durations
    exemplars: Sequence[Exemplar] = ()
    began_s: float | None = None

    def classic_buckets(self) -> Iterator[tuple[str, int, Exemplar | None]]:
        """Yield the upper bound of each classic bucket, its count, and its newest exemplar."""
        newest = {_classic_index(each.duration_ns): each for each in self.exemplars}
        for index, (bound, count) in enumerate(_classic_counts(self.durations.buckets)):
            yield bound, count, newest.get(index)


class StageHistograms(Metric):
    """A family of histograms of durations in seconds, without samples until a format is chosen."""

    schema = SCHEMA

    def __init__(self, name: str, documentation: str) -> None:
        super().__init__(name, documentation, "histogram")
        self.histograms: list[StageHistogram] = []

    def add(
        self,
        labels: Labels,
        durations: Durations,
        exemplars: Iterable[Exemplar] = (),
        *,
        began_s: float | None = None,
    ) -> None:
        """Add a histogram, with samples of it that are shown one by one.

        `began_s`: the time, since 1970, when it had no sample yet.
        """
        clean = {name: label_value(value) for name, value in labels.items()}
        in_order = sorted(exemplars, key=lambda each: each.unix_ns)
        self.histograms.append(StageHistogram(clean, durations, in_order, began_s))

    def classic(self) -> Metric:
        """Return the family with classic buckets, without the times when they began."""
        family = Metric(self.name, self.documentation, self.type)
        for each in self.histograms:
            for bound, count, exemplar in each.classic_buckets():
                family.add_sample(
                    f"{self.name}_bucket",
                    {**each.labels, "le": bound},
                    count,
                    exemplar=_as_in_library(exemplar) if exemplar else None,
                )
            buckets = each.durations.buckets
            family.add_sample(f"{self.name}_count", dict(each.labels), sum(buckets.values()))
            family.add_sample(f"{self.name}_sum", dict(each.labels), each.durations.sum_ns / 1e9)
        return family


def _as_in_library(exemplar: Exemplar) -> samples.Exemplar:
    return samples.Exemplar(
        dict(exemplar.labels), exemplar.duration_ns / 1e9, exemplar.unix_ns / 1e9
    )


def _classic_index(duration_ns: int) -> int:
    return bisect_left(_CLASSIC_POSITIONS, position_of(duration_ns))


class BegunCounters(CounterMetricFamily):
    """A family of counters with the times when they began: `created` of `add_metric`."""

    def classic(self) -> Metric:
        """Return the family without these times, each of which would be a series in a text."""
        family = Metric(self.name, self.documentation, self.type)
        ending = f"{self.name}_total"
        family.samples = [sample for sample in self.samples if sample.name == ending]
        return family


def _classic_counts(buckets: Mapping[int, int]) -> Iterator[tuple[str, int]]:
    positions = sorted(buckets)
    counts = [0, *accumulate(buckets[position] for position in positions)]
    for position, bound in zip(_CLASSIC_POSITIONS, _CLASSIC_BOUNDS, strict=True):
        yield bound, counts[bisect_right(positions, position)]
    yield "+Inf", counts[-1]
