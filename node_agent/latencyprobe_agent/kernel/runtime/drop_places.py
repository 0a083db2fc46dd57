"""The kernel functions that drop packets of targets: `drop_places` (bpf/modules/drops.bpf.c).

A program notes addresses of the kernel. They stay here: a report has names of functions.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from latencyprobe.domain.stages import OTHER_PLACES, drop_place_counter
from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import DROP_PLACES
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms

log = logging.getLogger(__name__)

# The functions of a target that have counters of their own, the most frequent ones.
MOST_FUNCTIONS = 16
# Each kernel has some hundred functions that drop packets.
_MOST_NAMES = 4096


class DropPlaces:
    """The counts by slot and function. `link`: returns that of the iterator that writes names.

    `rooms`: by which the map is divided between the slots.
    """

    def __init__(self, map_fd: int, link: Callable[[], int | None], rooms: SlotRooms) -> None:
        self._map = map_fd
        self._link = link
        self._rooms = rooms
        self._names: dict[int, str] = {}

    def admit(self, new: Collection[int], slots: Collection[int]) -> None:
        """Have room for the drops of these slots. `new`: those that have another target."""
        self._rooms.admit(new, slots)

    def take(self, epoch: int) -> Mapping[int, Mapping[str, int]]:
        """Return the counts of one half by slot and counter, and delete them.

        Call this only for the inactive half, which no program writes. Counts that cannot be read
        now stay for the next call with this half.
        """
        counts: dict[int, dict[str, int]] = {}
        try:
            for location, slot, count in self._taken(epoch):
                of_slot = counts.setdefault(slot, {})
                name = drop_place_counter(self._names.get(location, ""))
                of_slot[name] = of_slot.get(name, 0) + count
        except OSError as error:
            log.warning("cannot read all functions that drop packets: %s", error)
        return counts

    def _taken(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """Delete the counts of one half; yield the place, the slot and the count of each."""
        keys = libbpf.keys(self._map, DROP_PLACES.key.size)
        places = [(key, *DROP_PLACES.key.unpack(key)) for key in keys]
        taken = [(key, location, slot) for key, location, slot, half in places if half == epoch]
        self._find_names({location for _, location, _ in taken} - self._names.keys())
        for key, location, slot in taken:
            value = libbpf.look_up(self._map, key, DROP_PLACES.value.size)
            libbpf.delete(self._map, key)
            if value is not None:
                yield location, slot, DROP_PLACES.value.unpack(value)[0]
        self._rooms.count()
        left = Counter(slot for _, _, slot, half in places if half != epoch)
        self._rooms.divide(tuple(self._rooms.parts), left)

    def _find_names(self, locations: Collection[int]) -> None:
        if not locations:
            return
        if len(self._names) + len(locations) > _MOST_NAMES:
            self._names.clear()
        link = self._link()
        try:
            found = named_by_kernel(link) if link is not None else named_by_symbols(locations)
        except OSError as error:
            log.warning("cannot read the names of kernel functions: %s", error)
            if is_transient(error):
                return  # The next call with such a place tries again.
            found = {}
        self._names |= {location: found.get(location, "") for location in locations}


def named_by_kernel(link_fd: int) -> Mapping[int, str]:
    """Return the functions of all places in the map, by the kernel itself. Raises OSError."""
    lines = libbpf.run_iterator(link_fd).decode("ascii", "replace").splitlines()
    named = (line.split() for line in lines)
    return {int(fields[0], 16): fields[1] for fields in named if len(fields) > 1}


def named_by_symbols(
    locations: Iterable[int], symbols: Path = Path("/proc/kallsyms")
) -> Mapping[int, str]:
    """Return the functions at these addresses by the kernel's symbols. Raises OSError.

    Return none if the kernel hides its addresses: kallsyms_show_value(), kernel/ksyms_common.c.
    """
    wanted = sorted(locations)
    nearest = [(0, "")] * len(wanted)
    with symbols.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            address, kind, name = line.split()[:3]
            if kind not in "tTwW":
                continue
            start = int(address, 16)
            # The places from here on are in this function, unless another begins between.
            for place in range(bisect_right(wanted, start - 1), len(wanted)):
                if nearest[place][0] >= start:
                    break
                nearest[place] = (start, name)
    return {location: name for location, (_, name) in zip(wanted, nearest, strict=True) if name}


def drop_counters(functions: Mapping[str, int], drops: int) -> Mapping[str, int]:
    """Return the most frequent functions' counters, and one for the rest of all drops."""
    named = ((name, count) for name, count in functions.items() if name != OTHER_PLACES)
    ordered = sorted(named, key=lambda each: (-each[1], each[0]))[:MOST_FUNCTIONS]
    rest = drops - sum(count for _, count in ordered)
    return {**dict(ordered), **({OTHER_PLACES: rest} if rest > 0 else {})}
