"""Measurements packed into bytes, a fraction of the size of their Python objects.

An agent packs and unpacks each pod once per interval. So the form is one that costs little time:
the counts of a stage are a row, each as wide as the largest of them. The bytes never leave the
process that packed them.
"""

from __future__ import annotations

import marshal
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.lanes import Format, Lanes
from latencyprobe.domain.measurement import Measurement, NodeStage, StageMeasurement

# The newest version searches for repeated objects, which takes longer than to write them.
_VERSION = 2
# Higher levels take longer, and save next to nothing.
_LEVEL = 1
# In place of the minimum of no samples.
NO_MINIMUM = (1 << 64) - 1
_PackedRow = tuple[int, Format, bytes, int, int, int, int]


@dataclass(frozen=True, slots=True)
class PackedInterval:
    """A measurement; the figures of its stages that cannot be subtracted are not in the bytes.

    `shortest_ns`: NO_MINIMUM for a stage without samples. `ratios`: None without any sampling.
    """

    names: tuple[str, ...]
    shortest_ns: array[int]
    longest_ns: array[int]
    samples: array[int]
    ratios: array[float] | None
    rest: bytes


class SummedStage(NamedTuple):
    """The figures of a stage that add up.

    `sums`: of durations, and of lost, unmatched and clamped samples.
    """

    counts: Lanes
    sums: tuple[int, int, int, int]


class PackedParts(NamedTuple):
    """The figures of a packed measurement that add up, without the objects of the domain."""

    stages: Iterator[tuple[str, SummedStage]]
    counters: dict[str, int]
    netns_counters: dict[str, int]


def pack(measurement: Measurement, before: PackedInterval | None = None) -> PackedInterval:
    """Pack the measurement of a target. `before`: one that may have the same stages."""
    names, measured = tuple(measurement.stages), measurement.stages.values()
    if before is not None and before.names == names:
        names = before.names  # kept once
    histograms = [each.histogram for each in measured]
    shortest_ns = [each.min_ns if each.count else NO_MINIMUM for each in histograms]
    ratios = [each.sampling_ratio for each in measured]
    rows = [_row_of(each) for each in measured]
    counters, netns_counters = dict(measurement.counters), dict(measurement.netns_counters)
    return PackedInterval(
        names,
        array("Q", shortest_ns),
        array("Q", [each.max_ns for each in histograms]),
        array("Q", [each.count for each in histograms]),
        None if min(ratios, default=1.0) == 1 else array("d", ratios),
        marshal.dumps((rows, counters, netns_counters), _VERSION),
    )


def parts_of(packed: PackedInterval) -> PackedParts:
    """Return the parts of a packed measurement that add up; cheaper than `unpack`."""
    rows, counters, netns_counters = _loaded(packed.rest)
    stages = zip(packed.names, map(_summed, rows), strict=True)
    return PackedParts(stages, counters, netns_counters)


def unpack(packed: PackedInterval) -> Measurement:
    """Return the measurement that `pack` packed."""
    parts = parts_of(packed)
    ratios: Sequence[float] = packed.ratios or [1.0] * len(packed.names)
    extremes = zip(packed.shortest_ns, packed.longest_ns, ratios, strict=True)
    stages = {
        name: _value(summed, 0 if shortest_ns == NO_MINIMUM else shortest_ns, longest_ns, ratio)
        for (name, summed), (shortest_ns, longest_ns, ratio) in zip(
            parts.stages, extremes, strict=True
        )
    }
    return Measurement(stages, parts.counters, parts.netns_counters)


def pack_stages(stages: Mapping[NodeStage, StageMeasurement]) -> bytes:
    """Pack the stages of a node, compressed, for there may be thousands; none take no bytes."""
    if not stages:
        return b""
    # A named tuple is no tuple to marshal.
    plain = {
        (key.name, key.detail): (
            _row_of(measured),
            measured.histogram.min_ns,
            measured.histogram.max_ns,
            measured.sampling_ratio,
        )
        for key, measured in stages.items()
    }
    return zlib.compress(marshal.dumps(plain, _VERSION), _LEVEL)


def unpack_stages(packed: bytes) -> dict[NodeStage, StageMeasurement]:
    """Return the stages that `pack_stages` packed."""
    if not packed:
        return {}
    return {
        NodeStage(*key): _value(_summed(row), *extremes)
        for key, (row, *extremes) in _loaded(zlib.decompress(packed)).items()
    }


def _loaded(packed: bytes) -> Any:
    # Only this process writes these bytes.
    return marshal.loads(packed)  # noqa: S302


def _row_of(measured: StageMeasurement) -> _PackedRow:
    counts = Lanes.of(measured.histogram.buckets)
    losses = (measured.lost, measured.unmatched, measured.clamped)
    return counts.first, *counts.narrow(), measured.histogram.sum_ns, *losses


def _summed(row: _PackedRow) -> SummedStage:
    first, code, counts, *sums = row
    sum_ns, lost, unmatched, clamped = sums
    return SummedStage(Lanes.of_row(first, code, counts), (sum_ns, lost, unmatched, clamped))


def _value(
    summed: SummedStage, min_ns: int, max_ns: int, sampling_ratio: float
) -> StageMeasurement:
    sum_ns, lost, unmatched, clamped = summed.sums
    histogram = Histogram(summed.counts, sum_ns, min_ns, max_ns)
    return StageMeasurement(histogram, lost, unmatched, clamped, sampling_ratio)
