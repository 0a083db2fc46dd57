"""The elements that a slot counts in, and adding them up again."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import (
    BUCKETS_PER_OCTAVE,
    FIRST_OCTAVE,
    HIGHEST_NS,
    LOWEST_NS,
    OVERFLOW,
    POSITIONS,
    bounds_of,
    position_of,
)
from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import TARGET_STAGES
from latencyprobe_agent.kernel.abi import (
    CONFIG,
    MAX_SLOTS,
    NO_SHARDS,
    NR_DROP_REASONS,
    PLACES,
    SHARDS,
    SLOT_STATS,
    STAGE_STATS,
    TOP_NS,
    bucket_bounds,
)
from latencyprobe_agent.kernel.runtime.configuration import CONFIG_BYTES, ConfigMemory
from latencyprobe_agent.kernel.runtime.shards import Shards, share_out
from latencyprobe_agent.kernel.runtime.statistics import (
    SLOT_BYTES,
    SamplingRatios,
    StatisticsMemory,
    decode_slot,
    merge_shards,
)

SLOTS = st.sets(st.integers(0, MAX_SLOTS - 1), min_size=1)
CPUS = st.integers(1, 512)
_HEADER = STAGE_STATS.part("sum", "extremes")
_COUNTS = STAGE_STATS.part("counts")
_COUNTERS = SLOT_STATS.part("counters")


def counted(durations_ns: list[int], counters: int) -> bytes:
    """An element as a CPU leaves it: the durations in every stage, the number in each counter."""
    content = bytearray(SLOT_BYTES)
    size = len(_COUNTERS.unpack_from(content, SLOT_STATS.offset("counters")))
    _COUNTERS.pack_into(content, SLOT_STATS.offset("counters"), *[counters] * size)
    for index in range(len(TARGET_STAGES) if durations_ns else 0):
        offset = SLOT_STATS.offset("stages") + index * STAGE_STATS.size
        counts = list(_COUNTS.unpack_from(content, offset + STAGE_STATS.offset("counts")))
        for duration in durations_ns:
            counts[position_of(duration)] += 1
        extremes = (max(durations_ns), TOP_NS - min(durations_ns), 0, 1)
        _HEADER.pack_into(content, offset, sum(durations_ns), *extremes)
        _COUNTS.pack_into(content, offset + STAGE_STATS.offset("counts"), *counts)
    return bytes(content)


@given(SLOTS, CPUS)
def test_no_two_slots_share_an_element(slots: set[int], cpus: int) -> None:
    shared = share_out(slots, cpus)
    elements = [element for shards in shared.values() for element in shards.elements()]
    assert shared.keys() == slots
    assert len(elements) == len(set(elements))
    assert all(0 <= element < MAX_SLOTS for element in elements)


@given(SLOTS, CPUS)
def test_a_slot_has_as_many_elements_as_cpus_or_as_there_is_room_for(
    slots: set[int], cpus: int
) -> None:
    (count,) = {shards.count for shards in share_out(slots, cpus).values()}
    assert count & (count - 1) == 0
    assert count < 2 * cpus
    assert count >= min(cpus, 8) or 2 * count * len(slots) > MAX_SLOTS


def test_more_slots_than_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="257 slots, but only 256 elements"):
        share_out(range(MAX_SLOTS + 1), 2)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2**36), max_size=20), st.integers(0, 2**40)),
        min_size=1,
        max_size=8,
    )
)
def test_shards_add_up_to_the_counts_of_one_cpu(
    parts: list[tuple[list[int], int]],
) -> None:
    contents = [counted(*part) for part in parts]
    merged = decode_slot(merge_shards(contents), SamplingRatios(), [])
    assert merged == sum(
        (decode_slot(each, SamplingRatios(), []) for each in contents), start=NOTHING
    )


def test_a_reading_takes_every_shard_once_and_slots_that_are_gone_leave_nothing_behind() -> None:
    file = os.memfd_create("stats")
    os.truncate(file, 2 * MAX_SLOTS * SLOT_BYTES)
    memory = StatisticsMemory(file, [])
    for element in (2, 3, 4):
        os.pwrite(file, counted([100 * element], 0), (MAX_SLOTS + element) * SLOT_BYTES)
    shards = {7: Shards(2, 2), 9: Shards(4, 2)}

    taken = memory.take(1, shards, [7], SamplingRatios())
    again = memory.take(1, shards, [7, 9], SamplingRatios())

    histogram = taken[7].stage("rx.total").histogram
    assert taken.keys() == {7}
    assert (histogram.count, histogram.min_ns, histogram.max_ns) == (2, 200, 300)
    assert again == {}
    memory.close()
    os.close(file)


def test_the_shards_of_one_half_leave_the_other_as_it_is() -> None:
    file = os.memfd_create("configuration")
    os.truncate(file, CONFIG_BYTES)
    memory = ConfigMemory(file)

    memory.write_shards(0, {3: Shards(6, 2)})
    memory.write_shards(1, {3: Shards(0, 4), 5: Shards(4, 4)})
    memory.write_shards(1, {5: Shards(8, 8)})

    def written(epoch: int, slot: int) -> tuple[int, int]:
        offset = CONFIG.offset("shards") + (epoch * MAX_SLOTS + slot) * SHARDS.size
        first, mask = SHARDS.packing.unpack(os.pread(file, SHARDS.size, offset))
        return first, mask

    assert written(0, 3) == (6, 1)
    assert written(1, 3) == NO_SHARDS
    assert written(1, 5) == (8, 7)
    memory.close()
    os.close(file)


def test_no_place_of_a_position_is_outside_of_its_element() -> None:
    assert PLACES & (PLACES - 1) == 0
    assert POSITIONS <= PLACES <= POSITIONS + NR_DROP_REASONS


def position_by_table(duration_ns: int) -> int:
    """position_of() of bpf/include/histogram.h, within the bounds."""
    octave = duration_ns.bit_length() - 1
    mantissa = duration_ns << (63 - octave)
    bound = bucket_bounds()[mantissa >> 59 & 15]
    above = (bound & 0xFF) + (mantissa >> 8 > bound >> 8)
    return (octave - FIRST_OCTAVE) * BUCKETS_PER_OCTAVE + above


def test_the_table_of_bounds_gives_the_position_of_every_duration() -> None:
    choose = random.Random(1)
    near_bounds = (
        round(bounds_of(position)[1]) + offset
        for position in range(OVERFLOW)
        for offset in (-2, -1, 0, 1, 2)
    )
    anywhere = (choose.getrandbits(choose.randrange(7, 37)) for _ in range(20_000))
    for duration in (*near_bounds, *anywhere):
        if LOWEST_NS <= duration <= HIGHEST_NS:
            assert position_by_table(duration) == position_of(duration), duration
