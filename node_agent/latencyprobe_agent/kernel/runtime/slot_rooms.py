"""The room of each slot in hashes of a fixed size that all slots share: bpf/include/rooms.h.

A target may make as many entries as it wants, such as peers. So each hash is divided between the
slots, by their latest demands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from latencyprobe_agent.kernel.abi import MAX_SLOTS, ROOMS, Room
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray, signed


def fair_parts(total: int, demands: Mapping[int, int]) -> dict[int, int]:
    """Return how many entries each slot may have. `demands`: how many each asks for.

    No slot has fewer than it asks for while another one has more than it. Half of an equal part is
    each one's in any case, so that it may grow. What is left over is divided equally.
    """
    if not demands:
        return {}
    least = total // (2 * len(demands))
    wanted = {slot: max(least, demand) for slot, demand in demands.items()}
    parts, left = {}, total
    for place, slot in enumerate(sorted(wanted, key=lambda each: (wanted[each], each))):
        parts[slot] = min(wanted[slot], left // (len(wanted) - place))
        left -= parts[slot]
    spare = left // len(parts)
    return {slot: part + spare for slot, part in parts.items()}


class _Counts(NamedTuple):
    taken: int
    refused: int


class SlotRooms:
    """The rooms of slots in one hash, which is new.

    `table`: the elements of `slot_rooms`. The demand of a slot is its entries, and the attempts
    that found no room. `refused`: those between the last two calls of `count`, by slot.
    """

    def __init__(self, table: MappedArray, room: Room) -> None:
        self._table = table
        self._first = room * MAX_SLOTS
        self._total = ROOMS[room]
        self._used: dict[int, int] = {}
        self._demands: dict[int, int] = {}
        self._counted: dict[int, _Counts] = {}
        self.parts: Mapping[int, int] = {}
        self.refused: Mapping[int, int] = {}

    @property
    def has_more_room(self) -> bool:
        """True if a slot was refused entries that a division by the last count would allow."""
        parts = fair_parts(self._total, {slot: self._demands.get(slot, 0) for slot in self.parts})
        return any(parts[slot] > self.parts[slot] for slot in self.refused)

    def admit(self, new: Collection[int], slots: Collection[int]) -> None:
        """Divide the hash between these slots. `new`: those that have another target."""
        self.count()
        for slot in new:
            self._demands.pop(slot, None)
        self.divide(slots, dict(self._used))

    def count(self) -> None:
        """Count the demands of slots since the last division."""
        refused = {}
        for slot in self.parts:
            counts, before = self._counts(slot), self._counted[slot]
            more = signed(counts.refused - before.refused)
            if more:
                refused[slot] = more
            self._used[slot] = self._used.get(slot, 0) + signed(counts.taken - before.taken)
            self._demands[slot] = self._used[slot] + more
            self._counted[slot] = counts
        self.refused = refused

    def divide(self, slots: Collection[int], used: Mapping[int, int]) -> None:
        """Divide the hash between these slots from now on.

        `used`: the entries that stay, by slot, with those of slots that are gone.
        """
        of_others = sum(count for slot, count in used.items() if slot not in slots)
        demands = {slot: self._demands.get(slot, 0) for slot in slots}
        parts = fair_parts(max(0, self._total - of_others), demands)
        for slot in self.parts.keys() - parts.keys():
            self._allow(slot, 0)
            self._demands.pop(slot, None)
        for slot, part in parts.items():
            self._counted[slot] = self._counts(slot)
            self._allow(slot, max(0, part - used.get(slot, 0)))
        self.parts, self._used = parts, dict(used)

    def _allow(self, slot: int, more: int) -> None:
        place = self._first + slot
        self._table.set(place, "allowed", self._table.get(place, "taken") + more)

    def _counts(self, slot: int) -> _Counts:
        place = self._first + slot
        return _Counts(self._table.get(place, "taken"), self._table.get(place, "refused"))
