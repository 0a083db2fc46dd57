"""Hashes that are divided between slots, as programs take room in them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.kernel.abi import MAX_SLOTS, ROOMS, Room
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, signed
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms, fair_parts
from tests.unit.agent.slot_rooms import empty_rooms

ROOM = Room.WAITS_FOR_CGROUPS
TOTAL = ROOMS[ROOM]
FLOOD = 10_000


@given(
    total=st.integers(0, 5000),
    demands=st.dictionaries(st.integers(0, 255), st.integers(0, FLOOD), max_size=60),
)
def test_no_slot_gets_less_than_its_demand_while_another_one_gets_more(
    total: int, demands: Mapping[int, int]
) -> None:
    parts = fair_parts(total, demands)
    assert parts.keys() == demands.keys()
    assert sum(parts.values()) <= total
    short = [parts[slot] for slot, demand in demands.items() if parts[slot] < demand]
    if short:
        assert max(parts.values()) <= min(short) + 1


@pytest.mark.parametrize("others", [1, 30, 255])
def test_a_flood_leaves_each_other_one_half_of_an_equal_part_or_its_demand(others: int) -> None:
    demands = {0: FLOOD, **dict.fromkeys(range(1, others + 1), 3)}
    parts = fair_parts(TOTAL, demands)
    assert min(parts.values()) >= max(3, TOTAL // (2 * (others + 1)))
    assert parts[0] >= TOTAL - others * max(3, TOTAL // (2 * (others + 1))) - 1


def test_without_slots_there_are_no_parts() -> None:
    assert fair_parts(TOTAL, {}) == {}


def take(table: MappedArray, slot: int, entries: int) -> int:
    """Make entries as programs do; return how many found room."""
    place = ROOM * MAX_SLOTS + slot
    free = max(0, signed(table.get(place, "allowed") - table.get(place, "taken")))
    made = min(entries, free)
    table.add(place, "taken", made)
    table.add(place, "refused", entries - made)
    return made


def test_a_slot_without_a_target_has_no_room() -> None:
    table = empty_rooms()
    rooms = SlotRooms(table, ROOM)
    assert take(table, 3, 1) == 0
    rooms.admit((3,), (3, 4))
    assert take(table, 3, 1) == 1
    rooms.admit((), (4,))
    assert take(table, 3, 1) == 0


def test_one_target_alone_has_all_the_room_and_a_second_one_what_is_left() -> None:
    table = empty_rooms()
    rooms = SlotRooms(table, ROOM)
    rooms.admit((3,), (3,))
    assert take(table, 3, FLOOD) == TOTAL
    rooms.count()
    assert rooms.refused == {3: FLOOD - TOTAL}
    rooms.divide((3,), {})
    assert take(table, 3, FLOOD) == TOTAL
    rooms.admit((4,), (3, 4))
    assert take(table, 3, 1) == 0
    assert take(table, 4, 10) == 10


def test_room_that_was_refused_is_that_of_the_next_division() -> None:
    table = empty_rooms()
    rooms = SlotRooms(table, ROOM)
    rooms.admit((3, 4), (3, 4))
    wanted = TOTAL // 2 + 100
    assert take(table, 3, wanted) == TOTAL // 2
    take(table, 4, 5)

    def has_more_room() -> bool:
        rooms.count()
        return rooms.has_more_room

    assert has_more_room()
    rooms.divide((3, 4), {})
    assert take(table, 3, wanted) == wanted
    assert not has_more_room()
    assert rooms.refused == {}


def test_entries_that_stay_take_their_room() -> None:
    table = empty_rooms()
    rooms = SlotRooms(table, ROOM)
    rooms.admit((3, 4), (3, 4))
    take(table, 3, 10)
    rooms.count()
    rooms.divide((3, 4), {3: 10, 9: 100})
    assert take(table, 3, FLOOD) + 10 + take(table, 4, FLOOD) <= TOTAL - 100


def test_a_new_target_of_a_slot_asks_for_nothing_yet() -> None:
    table = empty_rooms()
    rooms = SlotRooms(table, ROOM)
    rooms.admit((3, 4), (3, 4))
    take(table, 3, FLOOD)
    rooms.count()
    rooms.divide((3, 4), {})
    assert rooms.parts[3] > rooms.parts[4]
    rooms.admit((3,), (3, 4))
    assert rooms.parts[3] == rooms.parts[4]


def test_sums_of_programs_may_pass_the_end_of_their_numbers() -> None:
    table = empty_rooms()
    table.set(ROOM * MAX_SLOTS + 3, "taken", 2**32 - 2)
    rooms = SlotRooms(table, ROOM)
    rooms.admit((3,), (3,))
    assert take(table, 3, 5) == 5
    rooms.count()
    assert rooms.refused == {}
    rooms.divide((3,), {3: 5})
    assert take(table, 3, FLOOD) == TOTAL - 5
