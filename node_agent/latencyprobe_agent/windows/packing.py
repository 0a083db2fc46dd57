"""Measurements packed into bytes, a fraction of the size of their Python objects.

An agent packs and unpacks each pod once per interval. So the form is one that costs little time.
The bytes never leave the process that packed them.
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeStage, StageMeasurement

# Numbers of 8, 16, 32 and 64 bits: most counts of an interval are small.
_WIDTHS = tuple((code, 1 << 8 * array(code).itemsize) for code in "BHIQ")
# The newest version searches for repeated objects, which takes longer than to write them.
_VERSION = 2
_Key = TypeVar("_Key", str, tuple[str, str])
_Plain = tuple[bytes, str, bytes, tuple[int, int, int, int], int, int, float]


class PackedStage(NamedTuple):
    """A stage as it is packed. `sums`: of durations, and of lost, unmatched and clamped samples."""

    buckets: Iterable[tuple[int, int]]
    sums: tuple[int, int, int, int]
    min_ns: int
    max_ns: int
    sampling_ratio: float


class PackedParts(NamedTuple):
    """The parts of a packed measurement, without the objects of the domain."""

    stages: Mapping[str, PackedStage]
    counters: dict[str, int]
    netns_counters: dict[str, int]


def pack(measurement: Measurement) -> bytes:
    """Pack the measurement of a target."""
    stages = {name: _plain(measured) for name, measured in measurement.stages.items()}
    counters, netns_counters = dict(measurement.counters), dict(measurement.netns_counters)
    return marshal.dumps((stages, counters, netns_counters), _VERSION)


def parts_of(packed: bytes) -> PackedParts:
    """Return the parts of a packed measurement; cheaper than `unpack`."""
    # Only this process writes these bytes.
    stages, counters, netns_counters = marshal.loads(packed)  # noqa: S302
    return PackedParts(_packed_stages(stages), counters, netns_counters)


def unpack(packed: bytes) -> Measurement:
    """Return the measurement that `pack` packed."""
    stages, counters, netns_counters = parts_of(packed)
    return Measurement(_values(stages), counters, netns_counters)


def pack_stages(stages: Mapping[NodeStage, StageMeasurement]) -> bytes:
    """Pack the stages of a node; no stages take no bytes."""
    if not stages:
        return b""
    # A named tuple is no tuple to marshal.
    plain = {(key.name, key.detail): _plain(measured) for key, measured in stages.items()}
    return marshal.dumps(plain, _VERSION)


def unpack_stages(packed: bytes) -> dict[NodeStage, StageMeasurement]:
    """Return the stages that `pack_stages` packed."""
    if not packed:
        return {}
    stages = _packed_stages(marshal.loads(packed))  # noqa: S302
    return {NodeStage(*key): measured for key, measured in _values(stages).items()}


def _plain(measured: StageMeasurement) -> _Plain:
    histogram = measured.histogram
    counts = histogram.buckets.values()
    code = _code(counts)
    return (
        bytes(histogram.buckets),
        code,
        array(code, counts).tobytes(),
        (histogram.sum_ns, measured.lost, measured.unmatched, measured.clamped),
        histogram.min_ns,
        histogram.max_ns,
        measured.sampling_ratio,
    )


def _code(counts: Collection[int]) -> str:
    """Return the code of the smallest numbers that hold these counts."""
    largest = max(counts, default=0)
    return next(code for code, end in _WIDTHS if largest < end)


def _packed_stages(stages: Mapping[_Key, _Plain]) -> dict[_Key, PackedStage]:
    return {
        key: PackedStage(
            zip(positions, array(code, counts), strict=True), sums, min_ns, max_ns, ratio
        )
        for key, (positions, code, counts, sums, min_ns, max_ns, ratio) in stages.items()
    }


def _values(stages: Mapping[_Key, PackedStage]) -> dict[_Key, StageMeasurement]:
    measured = {}
    for key, stage in stages.items():
        sum_ns, lost, unmatched, clamped = stage.sums
        histogram = Histogram(dict(stage.buckets), sum_ns, stage.min_ns, stage.max_ns)
        measured[key] = StageMeasurement(histogram, lost, unmatched, clamped, stage.sampling_ratio)
    return measured
