"""The table of network namespaces, as the programs read it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.kernel.abi import CONFIG, NO_PACKETS
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.configuration import (
    CONFIG_BYTES,
    MAX_NAMESPACES,
    ConfigMemory,
    NamespaceConfiguration,
    ProgramSettings,
    TimeSlice,
)

INODES = st.integers(0xF0000000, 0xF0003000)
TABLES = st.lists(
    st.dictionaries(
        INODES, st.builds(NamespaceConfiguration, st.integers(1, 7), st.integers(0, 2**64 - 1))
    ),
    max_size=6,
)


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A file of zeroes in the place of the kernel's map."""
    made = os.memfd_create("configuration")
    os.truncate(made, CONFIG_BYTES)
    yield made
    os.close(made)


def read(descriptor: int, offset: int, size: int) -> list[int]:
    return list(os.pread(descriptor, size, offset))


def find(content: bytes, inum: int) -> NamespaceConfiguration | None:
    """find_netns() of bpf/include/common.h."""
    (number,) = struct.unpack_from("=H", content, 2216 + 2 * (inum & 4095))
    for _ in range(4):
        if not number:
            break
        found, flags, following, owners = struct.unpack_from(
            "=IHHQ", content, 2216 + 8192 + 16 * number
        )
        if found == inum:
            return NamespaceConfiguration(flags, owners)
        number = following
    _, flags, _, owners = struct.unpack_from("=IHHQ", content, 2216 + 8192)
    return NamespaceConfiguration(flags, owners) if flags else None


@given(tables=TABLES)
def test_programs_find_what_was_written_last_and_nothing_else(
    tables: list[dict[int, NamespaceConfiguration]],
) -> None:
    descriptor = os.memfd_create("configuration")
    try:
        os.truncate(descriptor, CONFIG_BYTES)
        memory = ConfigMemory(descriptor)
        for table in tables:
            memory.write_namespaces(table)
            content = os.pread(descriptor, CONFIG_BYTES, 0)
            everyone = {inum for each in tables for inum in each}
            assert {inum: find(content, inum) for inum in everyone} == {
                inum: table.get(inum) for inum in everyone
            }
        memory.close()
    finally:
        os.close(descriptor)


def test_values_are_where_the_programs_read_them(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    memory.configure(ProgramSettings(epoch=1, generation=7, sample_mask=15))
    assert struct.unpack("=IIII", os.pread(descriptor, 16, 0)) == (1, 7, 15, 0)


def test_a_full_table_is_refused_and_stays_as_it_was(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    memory.write_namespaces({5: NamespaceConfiguration(2, 9)})
    with pytest.raises(EngineError, match=f"the maximum is {MAX_NAMESPACES}"):
        memory.write_namespaces(
            {inum: NamespaceConfiguration(2, 0) for inum in range(MAX_NAMESPACES + 1)}
        )
    assert find(os.pread(descriptor, CONFIG_BYTES, 0), 5) == NamespaceConfiguration(2, 9)


def test_a_chain_that_programs_would_not_follow_is_refused(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    with pytest.raises(EngineError, match="equal low bits"):
        memory.write_namespaces({7 + 4096 * n: NamespaceConfiguration(2, 0) for n in range(5)})


def test_all_other_namespaces_may_have_flags(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    known = NamespaceConfiguration(3, 9)
    memory.write_namespaces({5: known}, others=2)
    content = os.pread(descriptor, CONFIG_BYTES, 0)
    assert find(content, 5) == known
    assert find(content, 6) == NamespaceConfiguration(2, 0)
    memory.write_namespaces({5: known})
    assert find(os.pread(descriptor, CONFIG_BYTES, 0), 6) is None


def test_the_use_of_a_driver_is_reported_once_and_outlives_the_agents_own_changes(
    descriptor: int,
) -> None:
    memory = ConfigMemory(descriptor)
    assert not memory.take_driver_use()
    os.pwrite(descriptor, b"\1", CONFIG.offset("is_driver_used"))
    memory.configure(ProgramSettings(epoch=1, generation=7, sample_mask=15, sees_completions=True))
    assert memory.take_driver_use()
    assert not memory.take_driver_use()


def test_between_time_slices_programs_on_cgroups_and_devices_do_nothing(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    flags = (CONFIG.offset("sees_arrivals"), 4)
    memory.configure(
        ProgramSettings(
            sees_sends=True,
            sees_arrivals=True,
            sees_departures=True,
            sees_completions=True,
            sees_segments=True,
        )
    )
    assert read(descriptor, *flags) == [1, 1, 1, 1]
    memory.configure(replace(memory.settings, time_slice=TimeSlice(3, 9, is_over=True)))
    assert read(descriptor, *flags) == [0, 0, 0, 0]
    assert read(descriptor, CONFIG.offset("sees_sends"), 1) == [1]
    memory.configure(replace(memory.settings, time_slice=TimeSlice(4, 10)))
    assert read(descriptor, *flags) == [1, 1, 1, 1]
    at = CONFIG.offset("slice")
    assert struct.unpack("=QQ", os.pread(descriptor, 16, at)) == (4, 10)


def test_a_packet_that_begins_counts_while_the_time_slice_is_open(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    at = CONFIG.offset("sample_mask")
    memory.sample(3)
    assert struct.unpack("=I", os.pread(descriptor, 4, at)) == (7,)
    memory.configure(replace(memory.settings, time_slice=TimeSlice(1, 9, is_open=False)))
    assert struct.unpack("=I", os.pread(descriptor, 4, at)) == (NO_PACKETS,)
    memory.sample(2)
    assert struct.unpack("=I", os.pread(descriptor, 4, at)) == (NO_PACKETS,)
    memory.configure(replace(memory.settings, time_slice=TimeSlice(1, 9)))
    assert struct.unpack("=I", os.pread(descriptor, 4, at)) == (3,)


def test_a_change_of_targets_has_the_next_number_and_changes_nothing_else(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    memory.configure(ProgramSettings(epoch=1, generation=7, sample_mask=15))
    memory.bump_generation()
    assert memory.settings == ProgramSettings(epoch=1, generation=8, sample_mask=15)
    assert struct.unpack("=III", os.pread(descriptor, 12, 0)) == (1, 8, 15)


def test_parts_of_notes_are_as_many_as_there_were_slots_at_once(descriptor: int) -> None:
    memory = ConfigMemory(descriptor)
    at = CONFIG.offset("slot_bits")
    for slots, bits in (((), 0), ((0,), 1), ((0, 1), 2), ((2,), 2), ((255, 3), 9), ((1,), 9)):
        memory.reach(slots)
        assert os.pread(descriptor, 1, at)[0] == bits
