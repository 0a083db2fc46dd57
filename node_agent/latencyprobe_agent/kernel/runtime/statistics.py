"""Reading the kernel's histograms: `stats` (bpf/include/histogram.h) as measurements."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.lanes import Lanes
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.stages import (
    COUNTERS,
    DROP_PREFIX,
    TARGET_STAGES,
    Module,
    Stage,
    drop_counter,
)
from latencyprobe_agent.kernel.abi import (
    MAX_SLOTS,
    NR_DROP_REASONS,
    SLOT_STATS,
    STAGE_STATS,
    TOP_NS,
)
from latencyprobe_agent.kernel.runtime.drop_places import DropPlaces, drop_counters
from latencyprobe_agent.kernel.runtime.shards import Shards

STAGE_BYTES = STAGE_STATS.size
SLOT_BYTES = SLOT_STATS.size
_STAGE_HEADER = STAGE_STATS.part("sum", "missing")
_COUNTS = STAGE_STATS.part("counts")
_COUNTS_OFFSET = STAGE_STATS.offset("counts")
_COUNT_BYTES = 4
_COUNTERS = SLOT_STATS.part("counters")
_COUNTERS_OFFSET = SLOT_STATS.offset("counters")
_STAGES_OFFSET = SLOT_STATS.offset("stages")
_DROPS_OFFSET = SLOT_STATS.offset("drops")
_DROPS_BYTES = SLOT_STATS.part("drops").size
_NO_DROPS = bytes(_DROPS_BYTES)
_NO_STAGE = bytes(_STAGE_HEADER.size)
_EXTREMES = STAGE_STATS.part("extremes")
_NO_EXTREMES = bytes(_EXTREMES.size)
_EXTREMES_OFFSETS = tuple(
    _STAGES_OFFSET + index * STAGE_BYTES + STAGE_STATS.offset("extremes")
    for index in range(len(TARGET_STAGES))
)
# Sampling by packets applies only to these modules. Time slices apply to all that programs of
# packets measure.
_SAMPLED_MODULES = frozenset({Module.RX, Module.TX})
_SLICED_STAGES = frozenset(
    {"tcp.rtt", "tcp.queueing"}
    | {f"{side}.{part}" for side in ("app", "peer") for part in ("response", "transfer")}
)


class SamplingRatios(NamedTuple):
    """The parts of the packets, and of the time, that are measured."""

    of_packets: float = 1.0
    of_time: float = 1.0

    def of_stage(self, stage: Stage) -> float:
        """Return the part of a stage's events that is measured."""
        if stage.module in _SAMPLED_MODULES:
            return self.of_packets * self.of_time
        return self.of_time if stage.name in _SLICED_STAGES else 1.0


class StatisticsMemory:
    """The two halves of the kernel's `stats` map, mapped into this process.

    `drop_places`: None without module tcp.
    """

    def __init__(
        self, map_fd: int, drop_reasons: list[str], drop_places: DropPlaces | None = None
    ) -> None:
        self._drop_reasons = drop_reasons
        self._drop_places = drop_places
        self._memory = mmap.mmap(map_fd, 2 * MAX_SLOTS * SLOT_BYTES)
        self._zeroes = bytes(SLOT_BYTES)

    def take(
        self,
        epoch: int,
        shards: Mapping[int, Shards],
        slots: Collection[int],
        ratios: SamplingRatios,
    ) -> Mapping[int, Measurement]:
        """Return the measurements of these slots in one half, and zero all of it.

        `shards`: of this half, by slot. Call this only for the inactive half, which no program
        writes.
        """
        taken: dict[int, Measurement] = {}
        functions = self._drop_places.take(epoch) if self._drop_places is not None else {}
        for slot, places in shards.items():
            contents = [
                content
                for place in places.elements()
                if (content := self._take_element(epoch * MAX_SLOTS + place)) is not None
            ]
            if contents and slot in slots:
                content = contents[0] if len(contents) == 1 else merge_shards(contents)
                measured = decode_slot(content, ratios, self._drop_reasons)
                taken[slot] = _with_functions(measured, functions.get(slot, {}))
        return taken

    def _take_element(self, index: int) -> bytes | None:
        """Return an element, and zero it; None if nothing was counted."""
        offset = index * SLOT_BYTES
        content = self._memory[offset : offset + SLOT_BYTES]
        if content == self._zeroes:
            return None
        self._memory[offset : offset + SLOT_BYTES] = self._zeroes
        return content

    def close(self) -> None:
        """Unmap; the map itself lives as long as its descriptors."""
        self._memory.close()


def _with_functions(measured: Measurement, functions: Mapping[str, int]) -> Measurement:
    drops = sum(n for name, n in measured.counters.items() if name.startswith(DROP_PREFIX))
    if not drops:
        return measured
    return replace(measured, counters={**measured.counters, **drop_counters(functions, drops)})


def merge_shards(contents: Sequence[bytes]) -> bytes:
    """Add elements of `stats` as if one CPU had counted all.

    All members but the extremes are added, as one number. No member overflows into the next: that
    would take more packets than an interval can have.
    """
    total = 0
    extremes = [_EXTREMES.unpack(_NO_EXTREMES)] * len(_EXTREMES_OFFSETS)
    for content in contents:
        counted = bytearray(content)
        for stage, offset in enumerate(_EXTREMES_OFFSETS):
            found = _EXTREMES.unpack_from(counted, offset)
            extremes[stage] = tuple(map(max, extremes[stage], found))
            counted[offset : offset + _EXTREMES.size] = _NO_EXTREMES
        total += int.from_bytes(counted, "little")
    merged = bytearray(total.to_bytes(SLOT_BYTES, "little"))
    for stage, offset in enumerate(_EXTREMES_OFFSETS):
        _EXTREMES.pack_into(merged, offset, *extremes[stage])
    return bytes(merged)


def decode_slot(content: bytes, ratios: SamplingRatios, drop_reasons: list[str]) -> Measurement:
    """Decode one element of `stats`."""
    counts = _COUNTERS.unpack_from(content, _COUNTERS_OFFSET)
    counters = {
        counter.name: count for counter, count in zip(COUNTERS, counts, strict=True) if count
    }
    counters |= _decode_drops(content[_DROPS_OFFSET : _DROPS_OFFSET + _DROPS_BYTES], drop_reasons)
    stages: dict[str, StageMeasurement] = {}
    for index, stage in enumerate(TARGET_STAGES):
        offset = _STAGES_OFFSET + index * STAGE_BYTES
        if not is_empty(content, offset):
            stages[stage.name] = decode_stage(content, offset, ratios.of_stage(stage))
    return Measurement(stages, counters)


def _decode_drops(content: bytes, drop_reasons: list[str]) -> dict[str, int]:
    if content == _NO_DROPS:
        return {}
    drops: dict[str, int] = {}
    for number, count in enumerate(memoryview(content).cast("I")):
        if count:
            name = drop_counter(_reason(number, drop_reasons))
            drops[name] = drops.get(name, 0) + count
    return drops


def _reason(number: int, reasons: list[str]) -> str:
    """Return the name of a reason by its place in `stats`."""
    known = reasons[number] if number < len(reasons) else ""
    return known if known and number < NR_DROP_REASONS - 1 else "OTHER"


def is_empty(content: bytes | mmap.mmap, offset: int) -> bool:
    """Return True if a `struct stage_stats` is empty."""
    return content[offset : offset + _STAGE_HEADER.size] == _NO_STAGE


def decode_stage(content: bytes, offset: int, ratio: float) -> StageMeasurement:
    """Decode one `struct stage_stats`."""
    total, longest, top_less_min, _, _, lost, unmatched, clamped = _STAGE_HEADER.unpack_from(
        content, offset
    )
    first = offset + _COUNTS_OFFSET
    buckets = _decode_counts(content[first : first + _COUNTS.size])
    if buckets is None:
        return StageMeasurement(
            lost=lost, unmatched=unmatched, clamped=clamped, sampling_ratio=ratio
        )
    shortest = min(TOP_NS - top_less_min, longest)
    histogram = Histogram(buckets, total, shortest, longest)
    return StageMeasurement(histogram, lost, unmatched, clamped, ratio)


def _decode_counts(row: bytes) -> Lanes | None:
    """Return the counts by position; None if all are 0. Only the span in use is read."""
    counts = int.from_bytes(row, "little")
    if not counts:
        return None
    lowest_bit = (counts & -counts).bit_length() - 1
    begin, last = (bit // (8 * _COUNT_BYTES) for bit in (lowest_bit, counts.bit_length() - 1))
    span = memoryview(row)[begin * _COUNT_BYTES : (last + 1) * _COUNT_BYTES]
    return Lanes.of_row(begin, "I", span)
