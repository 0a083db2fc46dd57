"""The stages of a summary, decoded straight into their packed form.

An operator takes in 19,000 stages a second. So they are checked with few calls; a message with
anything unusual is checked once more by the functions that name the fault.
"""

from __future__ import annotations

from collections.abc import Sequence

from latencyprobe.domain.histogram import POSITIONS
from latencyprobe.domain.packed_stages import PackedStages, pack, pack_row, pack_stage
from latencyprobe.domain.stages import INDEX
from latencyprobe.protocol.limits import (
    LARGEST_NUMBER,
    LOWEST_SAMPLING_RATIO,
    check_stages,
)
from latencyprobe.protocol.measurements import measurement_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_POSITIONS = list(range(POSITIONS))


def stages_from_proto(stages: Sequence[pb.StageDelta], field: str) -> PackedStages:
    """Decode and check stages; raise CorruptMessageError. Unknown ones are left out."""
    packed: list[bytes] = []
    known: set[int | None] = set()
    for delta in stages:
        index = INDEX.get(delta.name)
        row = None if index is None or index in known else _packed(index, delta)
        if row is None:
            check_stages(stages, field)
            return pack(measurement_from_proto(stages, {}).stages)
        known.add(index)
        packed.append(row)
    return PackedStages(packed)


def _packed(stage: int, delta: pb.StageDelta) -> bytes | None:
    """Return the stage, or None if anything about it is unusual."""
    histogram = delta.histogram
    # A slice is a list, made twice as fast as from an iterator.
    positions, counts = histogram.positions[:], histogram.counts[:]
    shortest_ns, longest_ns = histogram.min_ns, histogram.max_ns
    lost, unmatched, clamped = delta.lost, delta.unmatched, delta.clamped
    figures = (histogram.sum_ns, shortest_ns, longest_ns, lost, unmatched, clamped)
    ratio = delta.sampling_ratio
    if (
        len(positions) != len(counts)
        or max(figures) > LARGEST_NUMBER
        or shortest_ns > longest_ns
        or not LOWEST_SAMPLING_RATIO <= ratio <= 1
    ):
        return None
    if not counts:
        return pack_stage(stage, positions, counts, figures, ratio)
    largest = max(counts)
    if largest > LARGEST_NUMBER or not all(counts):
        return None
    first = positions[0]
    # Busy stages have no gaps.
    if positions == _POSITIONS[first : first + len(positions)]:
        return pack_row(stage, first, counts, figures, ratio, largest=largest)
    if positions[-1] < POSITIONS and positions == sorted(set(positions)):
        return pack_stage(stage, positions, counts, figures, ratio)
    return None
