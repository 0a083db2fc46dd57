"""Measurements packed into bytes, a fraction of the size of their Python objects.

An agent packs and unpacks each pod once per interval. So the form is one that costs little time.
The bytes are compressed: stages have nearly the same positions. They never leave the process that
packed them.
"""

from __future__ import annotations

import functools
import marshal
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, NodeStage, StageMeasurement

# By the bytes of the largest count: most counts of an interval are small.
_CODES = "BBHIIQQQQ"
# The newest version searches for repeated objects, which takes longer than to write them.
_VERSION = 2
# Higher levels take longer, and save next to nothing.
_LEVEL = 1
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
    return _dumped((stages, counters, netns_counters))


def parts_of(packed: bytes) -> PackedParts:
    """Return the parts of a packed measurement; cheaper than `unpack`."""
    stages, counters, netns_counters = _loaded(packed)
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
    return _dumped(plain)


def unpack_stages(packed: bytes) -> dict[NodeStage, StageMeasurement]:
    """Return the stages that `pack_stages` packed."""
    if not packed:
        return {}
    stages = _packed_stages(_loaded(packed))
    return {NodeStage(*key): measured for key, measured in _values(stages).items()}


def _dumped(plain: Any) -> bytes:
    return zlib.compress(marshal.dumps(plain, _VERSION), _LEVEL)


def _loaded(packed: bytes) -> Any:
    # Only this process writes these bytes.
    return marshal.loads(zlib.decompress(packed))  # noqa: S302


def _plain(measured: StageMeasurement) -> _Plain:
    histogram = measured.histogram
    counts = histogram.buckets.values()
    code = _CODES[(max(counts, default=0).bit_length() + 7) // 8]
    return (
        bytes(histogram.buckets),
        code,
        _row_of(len(counts), code).pack(*counts),
        (histogram.sum_ns, measured.lost, measured.unmatched, measured.clamped),
        histogram.min_ns,
        histogram.max_ns,
        measured.sampling_ratio,
    )


@functools.cache
def _row_of(buckets: int, code: str) -> struct.Struct:
    return struct.Struct(f"={buckets}{code}")


def _packed_stages(stages: Mapping[_Key, _Plain]) -> dict[_Key, PackedStage]:
    return {
        key: PackedStage(
            zip(positions, _row_of(len(positions), code).unpack(counts), strict=True),
            sums,
            min_ns,
            max_ns,
            ratio,
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
