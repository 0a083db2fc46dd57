"""The programs' configuration: `struct config` of bpf/include/common.h, mapped into this process.

Besides a few integers it holds the bounds of buckets, the elements that each slot counts in, and
the table of network namespaces. `netns_first` maps the low bits of an inode number to an entry.
Entries with the same low bits are chained. Entry 0 stands for all namespaces without an entry.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from latencyprobe_agent.kernel.abi import (
    CONFIG,
    MAX_NETNS,
    MAX_SLOTS,
    NETNS_ENTRY,
    NETNS_FIRST,
    NETNS_HOPS,
    NO_PACKETS,
    NO_SHARDS,
    SHARDS,
    Obstacle,
    bucket_bounds,
    kind_name,
)
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.shards import Shards

MAX_NAMESPACES = MAX_NETNS - 1
CONFIG_BYTES = CONFIG.size
_INTEGERS = CONFIG.part("epoch", "slice_ns")
_DRIVER_USED_OFFSET = CONFIG.offset("is_driver_used")
_ENTRY = NETNS_ENTRY.packing
_FIRST_OFFSET = CONFIG.offset("netns_first")
_ENTRIES_OFFSET = CONFIG.offset("netns")
_BOUNDS = CONFIG.part("bucket_bounds")
_BOUNDS_OFFSET = CONFIG.offset("bucket_bounds")
_SHARDS_OFFSET = CONFIG.offset("shards")
_OBSTACLES = CONFIG.part("obstacles", "unknown_kind")
_OBSTACLES_OFFSET = CONFIG.offset("obstacles")
_HALF_BYTES = MAX_SLOTS * SHARDS.size


class NamespaceConfiguration(NamedTuple):
    """The configuration of a network namespace: NETNS_ flags, and owners of all its sockets."""

    flags: int
    owners: int


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """The time slice that programs of packets are attached for: its number and its beginning.

    The number is 0 while they are attached all the time. `is_open`: packets that begin are
    measured. `is_over`: the programs are detached, and those on cgroups and devices do nothing.
    """

    number: int = 0
    began_ns: int = 0
    is_open: bool = True
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """The settings of the programs, which they read with each event.

    `epoch`: the half of the measurements that they write. `generation`: the number of the targets'
    last change. `sees_sends`: a hook of tcp_sendmsg_locked() is attached. `reads_listeners`: an
    iterator counts what listeners turned away, and events need not. `sees_completions`: programs
    see drivers free the packets that they sent. `sees_arrivals`, `sees_departures` and
    `sees_segments`: programs on devices and cgroups see these, and the tracepoints' do nothing.
    `slot_bits`: the numbers of all slots so far are below 2**slot_bits - 1.
    """

    epoch: int = 0
    generation: int = 0
    sample_mask: int = 0
    sees_sends: bool = False
    reads_listeners: bool = False
    sees_arrivals: bool = False
    sees_departures: bool = False
    sees_completions: bool = False
    sees_segments: bool = False
    slot_bits: int = 0
    time_slice: TimeSlice = TimeSlice()


class ConfigMemory:
    """The one element of the map `configuration`."""

    def __init__(self, map_fd: int) -> None:
        self._memory = mmap.mmap(map_fd, CONFIG_BYTES)
        bounds = _BOUNDS.pack(*bucket_bounds())
        self._memory[_BOUNDS_OFFSET : _BOUNDS_OFFSET + len(bounds)] = bounds
        self._numbers: dict[int, int] = {}
        self.settings = ProgramSettings()

    def configure(self, settings: ProgramSettings) -> None:
        """Have programs use these. They read each one separately, and each is written at once."""
        self.settings = settings
        time_slice = settings.time_slice
        runs = not time_slice.is_over
        self._memory[: _INTEGERS.size] = _INTEGERS.pack(
            settings.epoch,
            settings.generation,
            settings.sample_mask if time_slice.is_open else NO_PACKETS,
            settings.sees_sends,
            settings.reads_listeners,
            settings.sees_arrivals and runs,
            settings.sees_departures and runs,
            settings.sees_completions and runs,
            settings.sees_segments and runs,
            settings.slot_bits,
            b"",
            time_slice.number,
            time_slice.began_ns,
        )

    def sample(self, shift: int) -> None:
        """Have programs measure one packet in 2**shift."""
        self.configure(replace(self.settings, sample_mask=(1 << shift) - 1))

    def reach(self, slots: Collection[int]) -> None:
        """Have tables of notes with a part for each of these slots: bpf/include/notes.h."""
        bits = max((slot + 1).bit_length() for slot in (*slots, -1))
        if bits > self.settings.slot_bits:
            self.configure(replace(self.settings, slot_bits=bits))

    def bump_generation(self) -> None:
        """Have every socket look up its slots again."""
        self.configure(replace(self.settings, generation=self.settings.generation + 1))

    def take_driver_use(self) -> bool:
        """Return True if a target's packet was given to a driver since the last call."""
        used = self._memory[_DRIVER_USED_OFFSET] != 0
        self._memory[_DRIVER_USED_OFFSET] = 0
        return used

    def write_shards(self, epoch: int, shards: Mapping[int, Shards]) -> None:
        """Set the elements of all slots in one half; call this only for the inactive half."""
        table = bytearray(SHARDS.packing.pack(*NO_SHARDS) * MAX_SLOTS)
        for slot, places in shards.items():
            SHARDS.packing.pack_into(table, slot * SHARDS.size, places.first, places.count - 1)
        begin = _SHARDS_OFFSET + epoch * _HALF_BYTES
        self._memory[begin : begin + _HALF_BYTES] = bytes(table)

    def write_namespaces(
        self, wanted: Mapping[int, NamespaceConfiguration], *, others: int = 0
    ) -> None:
        """Replace the table. A namespace that stays keeps its entry, so that no reader misses it.

        `others`: the flags of all other namespaces; 0: they have nothing to measure.
        Raises EngineError if the table is full; the table is then unchanged.
        """
        numbers = self._number(wanted)
        self._write_entry(0, 0, others, 0, 0)
        chains = _chains(numbers)
        for inum, (flags, owners) in wanted.items():
            chain = chains[inum % NETNS_FIRST]
            following = chain.index(numbers[inum]) + 1
            next_number = chain[following] if following < len(chain) else 0
            self._write_entry(numbers[inum], inum, flags, next_number, owners)
        for bucket in {inum % NETNS_FIRST for inum in (*self._numbers, *wanted)}:
            offset = _FIRST_OFFSET + 2 * bucket
            first = chains[bucket][0] if bucket in chains else 0
            self._memory[offset : offset + 2] = first.to_bytes(2, "little")
        for inum in self._numbers.keys() - wanted.keys():
            self._write_entry(self._numbers[inum], 0, 0, 0, 0)
        self._numbers = numbers

    def obstacles(self) -> Mapping[Obstacle, str]:
        """Return what programs have met since the last call of `forget_obstacles`.

        With the kind of the device, if that is the obstacle.
        """
        met, kind = _OBSTACLES.unpack_from(self._memory, _OBSTACLES_OFFSET)
        name = kind_name(kind)
        return {
            obstacle: name if obstacle is Obstacle.UNKNOWN_DEVICE else ""
            for obstacle in Obstacle
            if met[obstacle]
        }

    def forget_obstacles(self) -> None:
        """Have programs note what they meet from now on."""
        end = _OBSTACLES_OFFSET + _OBSTACLES.size
        self._memory[_OBSTACLES_OFFSET:end] = bytes(_OBSTACLES.size)

    def close(self) -> None:
        """Unmap."""
        self._memory.close()

    def _number(self, wanted: Mapping[int, NamespaceConfiguration]) -> dict[int, int]:
        """Return the number of each namespace's entry; new namespaces get unused numbers."""
        if len(wanted) > MAX_NAMESPACES:
            raise EngineError(
                f"cannot watch {len(wanted)} network namespaces: the maximum is {MAX_NAMESPACES}"
            )
        numbers = {inum: number for inum, number in self._numbers.items() if inum in wanted}
        # Not those that are released just now either: a reader may already hold their numbers.
        taken = set(self._numbers.values())
        unused = [n for n in range(1, MAX_NAMESPACES + 1) if n not in taken]
        given_up = sorted(taken - set(numbers.values()))
        fresh = iter(unused + given_up)
        for inum in wanted:
            if inum not in numbers:
                numbers[inum] = next(fresh)
        if any(len(chain) > NETNS_HOPS for chain in _chains(numbers).values()):
            raise EngineError(
                "cannot watch all network namespaces: too many inode numbers have equal low bits"
            )
        return numbers

    def _write_entry(self, number: int, inum: int, flags: int, following: int, owners: int) -> None:
        offset = _ENTRIES_OFFSET + number * _ENTRY.size
        self._memory[offset : offset + _ENTRY.size] = _ENTRY.pack(inum, flags, following, owners)


def _chains(numbers: Mapping[int, int]) -> dict[int, list[int]]:
    """Return the entries' numbers, by the low bits of their inode numbers."""
    chains: defaultdict[int, list[int]] = defaultdict(list)
    for inum, number in numbers.items():
        chains[inum % NETNS_FIRST].append(number)
    return dict(chains)
