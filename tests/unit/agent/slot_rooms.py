"""The rooms of slots as programs find them, in memory."""

from __future__ import annotations

from latencyprobe_agent.kernel.abi import MAX_SLOTS, SLOT_ROOM, Room
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, distance_of
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms


def empty_rooms() -> MappedArray:
    """The elements of the map `slot_rooms`."""
    return MappedArray(bytearray(len(Room) * MAX_SLOTS * distance_of(SLOT_ROOM)), SLOT_ROOM)


def rooms_of(room: Room) -> SlotRooms:
    """The rooms in one hash."""
    return SlotRooms(empty_rooms(), room)
