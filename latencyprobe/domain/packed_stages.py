"""Stages in little memory, for an operator that keeps those of thousands of nodes.

As Python objects, the 19 busy stages of a node take some 90 KB. Here they are one string of bytes,
of 4 KB. It still is a mapping of measurements by name.

Each stage is a header, its losses if it has any, and a row. The row has a *lane* for each bucket
from the lowest to the highest, as wide as the largest count requires. So a row is one large number:
an addition of two such numbers adds all their buckets.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import StageMeasurement
from latencyprobe.domain.stages import INDEX, STAGES

# In the order of the fields of StageRow, without its lanes. The last one of the header decides if
# the losses follow.
_HEADER_FORMAT = "<BBBBQQQQQ?"
_HEADER = struct.Struct(_HEADER_FORMAT)
_LOSSES_FORMAT = "QQQd"
_LOSSES = struct.Struct(f"<{_LOSSES_FORMAT}")
# Lost, unmatched and clamped samples, and the sampling ratio.
_NO_LOSSES = (0, 0, 0, 1.0)
LANE_FORMATS: Mapping[int, str] = {2: "H", 4: "I", 8: "Q"}
"""By the width of a lane in bytes, as in `struct`."""


class StageRow(NamedTuple):
    """One stage. `stage` is its index in STAGES, `first` the position of the lowest bucket.

    `width`: the bytes of a lane. `largest`: the largest count of a bucket. `lanes`: all of them as
    one number, the lowest bucket in its lowest bytes. Large, because each field is one of the
    header's.
    """

    stage: int
    first: int
    buckets: int
    width: int
    largest: int
    samples: int
    sum_ns: int
    min_ns: int
    max_ns: int
    lost: int
    unmatched: int
    clamped: int
    sampling_ratio: float
    lanes: int


class PackedStages(Mapping[str, StageMeasurement]):
    """Measurements of stages by their names, made from their values on each access."""

    __slots__ = ("_number", "_packed")

    def __init__(self, packed: Iterable[bytes] = ()) -> None:
        """Join stages that `pack_stage` has packed, each another one."""
        rows = list(packed)
        self._packed, self._number = b"".join(rows), len(rows)

    def rows(self) -> Iterator[StageRow]:
        """Yield all stages."""
        packed, at, end = self._packed, 0, len(self._packed)
        while at < end:
            *header, has_losses = _HEADER.unpack_from(packed, at)
            at += _HEADER.size
            if has_losses:
                header += _LOSSES.unpack_from(packed, at)
                at += _LOSSES.size
            else:
                header += _NO_LOSSES
            row_end = at + header[2] * header[3]
            header.append(int.from_bytes(packed[at:row_end], "little"))
            yield StageRow._make(header)
            at = row_end

    def __getitem__(self, name: str) -> StageMeasurement:
        index = INDEX.get(name)
        for row in self.rows():
            if row.stage == index:
                return _measurement(row)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (STAGES[row.stage].name for row in self.rows())

    def __len__(self) -> int:
        return self._number


def pack(stages: Mapping[str, StageMeasurement]) -> PackedStages:
    """Pack measurements of known stages."""
    if isinstance(stages, PackedStages):
        return stages
    return PackedStages(_pack(INDEX[name], measured) for name, measured in stages.items())


def _pack(stage: int, measured: StageMeasurement) -> bytes:
    histogram = measured.histogram
    positions = sorted(histogram.buckets)
    return pack_stage(
        stage,
        positions,
        [histogram.buckets[position] for position in positions],
        (
            histogram.sum_ns,
            histogram.min_ns,
            histogram.max_ns,
            measured.lost,
            measured.unmatched,
            measured.clamped,
        ),
        measured.sampling_ratio,
    )


def pack_stage(
    stage: int,
    positions: Sequence[int],
    counts: Sequence[int],
    figures: tuple[int, int, int, int, int, int],
    sampling_ratio: float,
) -> bytes:
    """Pack one stage. `stage` is its index, `positions` and `counts` are its buckets in order.

    `figures`: sum, minimum and maximum; lost, unmatched and clamped samples.
    """
    if not positions:
        return pack_row(stage, 0, (), figures, sampling_ratio, largest=0)
    first, last = positions[0], positions[-1]
    if last - first + 1 > len(counts):
        of_position = dict(zip(positions, counts, strict=True))
        counts = list(map(of_position.get, range(first, last + 1), repeat(0)))
    return pack_row(stage, first, counts, figures, sampling_ratio, largest=max(counts))


def pack_row(
    stage: int,
    first: int,
    counts: Sequence[int],
    figures: tuple[int, int, int, int, int, int],
    sampling_ratio: float,
    *,
    largest: int,
) -> bytes:
    """Pack one stage whose buckets have these counts, without a gap from the position `first` on.

    `largest`: the largest of the counts.
    """
    buckets = len(counts)
    width = 2 if largest < 1 << 16 else 4 if largest < 1 << 32 else 8
    *times, lost, unmatched, clamped = figures
    header = (stage, first, buckets, width, largest, sum(counts), *times)
    if sampling_ratio == 1 and not (lost or unmatched or clamped):
        return _row_of(width, buckets).pack(*header, False, *counts)
    losses = (lost, unmatched, clamped, sampling_ratio)
    return _row_of(width, buckets, _LOSSES_FORMAT).pack(*header, True, *losses, *counts)


@functools.cache
def lanes_of(width: int, buckets: int) -> struct.Struct:
    """Return the structure of a row of this many lanes."""
    return struct.Struct(f"<{buckets}{LANE_FORMATS[width]}")


@functools.cache
def _row_of(width: int, buckets: int, losses: str = "") -> struct.Struct:
    """Return the structure of a header, the losses if there are any, and a row of lanes."""
    return struct.Struct(f"{_HEADER_FORMAT}{losses}{buckets}{LANE_FORMATS[width]}")


def _measurement(row: StageRow) -> StageMeasurement:
    counts = lanes_of(row.width, row.buckets).unpack(
        row.lanes.to_bytes(row.width * row.buckets, "little")
    )
    buckets = {position: count for position, count in enumerate(counts, row.first) if count}
    return StageMeasurement(
        Histogram(buckets, row.sum_ns, row.min_ns, row.max_ns),
        row.lost,
        row.unmatched,
        row.clamped,
        row.sampling_ratio,
    )
