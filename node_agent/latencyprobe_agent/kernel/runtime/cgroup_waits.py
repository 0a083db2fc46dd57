"""The cgroups that the targets' threads waited for: bpf/modules/waits.bpf.c.

The programs add up; the agent reports the growth. A pair of target and cgroup that has not grown
since the last reading is deleted. Otherwise pods that come and go would fill the table. It is
divided between the targets, since one may wait for very many cgroups.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping

from latencyprobe.domain.stages import cgroup_counter
from latencyprobe_agent.kernel.abi import (
    MAX_OWNERS,
    OWNER_BITS,
    U64,
    WAIT_FOR_CGROUP,
    WAITS_FOR_CGROUPS,
)
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.named_maps import MapEntries
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms

log = logging.getLogger(__name__)

# Of one target and reading; the others are part of `waitedForOthersNs` alone.
MOST_CGROUPS = 4
_NAME = WAITS_FOR_CGROUPS.name
_OWNER_MASK = (1 << OWNER_BITS) - 1


class CgroupWaits:
    """The waits of one loaded object, whose maps are new."""

    def __init__(self, maps: MapEntries, rooms: SlotRooms) -> None:
        self._maps = maps
        self._rooms = rooms
        self._known: dict[bytes, int] = {}

    def admit(self, new: Collection[int], slots: Collection[int]) -> None:
        """Have room for the waits of these slots. `new`: those that have another target."""
        self._rooms.admit(new, slots)

    def take(self) -> Mapping[int, Mapping[str, int]]:
        """Return the counters of each slot since the last call: its cgroups with the most.

        Where the map cannot be read now, the next call returns the whole growth.
        """
        try:
            grown = self._grown()
        except EngineError as error:
            log.warning(
                "cannot read the waits for cgroups: %s; the next reading tries again", error
            )
            return {}
        waits: dict[int, Counter[int]] = defaultdict(Counter)
        for key, ns in grown.items():
            owners, cgroup_id = WAIT_FOR_CGROUP.packing.unpack(key)
            for slot in _slots(owners):
                waits[slot][cgroup_id] += ns
        return {slot: _largest(by_cgroup) for slot, by_cgroup in waits.items()}

    def _grown(self) -> Mapping[bytes, int]:
        now = {}
        for key in self._maps.keys(_NAME, WAIT_FOR_CGROUP.size):
            value = self._maps.look_up(_NAME, key, U64.size)
            if value is not None:
                (now[key],) = U64.unpack(value)
        # One with less than before was erased, though the call failed, and has begun again.
        before = {key: ns for key, ns in self._known.items() if ns <= now.get(key, 0)}
        grown = {key: ns - before.get(key, 0) for key, ns in now.items()}
        growing = {key: ns for key, ns in grown.items() if ns}
        gone = (grown.keys() - growing.keys()) | self._excess(growing)
        self._maps.erase(_NAME, gone)
        self._known = {key: ns for key, ns in now.items() if key not in gone}
        return growing

    def _excess(self, growing: Mapping[bytes, int]) -> set[bytes]:
        """Divide the table; return what a slot has beyond its part, with the shortest waits."""
        of_slots: dict[int, list[bytes]] = defaultdict(list)
        for key in growing:
            of_slots[_first_slot(key)].append(key)
        self._rooms.count()
        self._rooms.divide(
            tuple(self._rooms.parts), {slot: len(keys) for slot, keys in of_slots.items()}
        )
        excess: set[bytes] = set()
        for slot, part in self._rooms.parts.items():
            own = of_slots[slot]
            excess.update(heapq.nsmallest(len(own) - part, own, key=growing.__getitem__))
        return excess


def _slots(owners: int) -> Iterator[int]:
    """Yield the slots of an `owners_t`."""
    for place in range(MAX_OWNERS):
        number = owners >> (place * OWNER_BITS) & _OWNER_MASK
        if number:
            yield number - 1


def _first_slot(key: bytes) -> int:
    """Return the slot whose room an entry takes."""
    owners, _ = WAIT_FOR_CGROUP.packing.unpack(key)
    return next(_slots(owners))


def _largest(by_cgroup: Counter[int]) -> Mapping[str, int]:
    most = heapq.nlargest(MOST_CGROUPS, by_cgroup.items(), key=lambda each: (each[1], -each[0]))
    return {cgroup_counter(cgroup_id): ns for cgroup_id, ns in most}
