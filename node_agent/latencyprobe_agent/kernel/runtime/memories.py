"""The maps of a loaded object that are mapped into this process, or read by the agent alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.abi import (
    CONFIGURATION,
    DROP_PLACES,
    HANDLER_NAMES,
    MAX_SLOTS,
    NODE_STATS,
    PEERS,
    PENDING_OF_SLOTS,
    PENDING_READINGS,
    SLOT_ROOM,
    SLOT_ROOMS,
    SOCKET_MEMORIES,
    SOCKET_MEMORY,
    SOCKET_MEMORY_PLACES,
    STATS,
    THREAD_SHARE,
    THREAD_SHARE_PLACES,
    THREAD_SHARES,
    TRACE_CONTROLS,
    TRACE_RING,
    WAITS_FOR_CGROUPS,
    Room,
)
from latencyprobe_agent.kernel.hooks import NAME_DROP_PLACES
from latencyprobe_agent.kernel.runtime.cgroup_waits import CgroupWaits
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.drop_places import DropPlaces
from latencyprobe_agent.kernel.runtime.halves import InactiveHalf
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.node_statistics import NodeStatisticsMemory
from latencyprobe_agent.kernel.runtime.peers import PeerTable
from latencyprobe_agent.kernel.runtime.pending import PendingMemory
from latencyprobe_agent.kernel.runtime.ring import PacketRing
from latencyprobe_agent.kernel.runtime.slot_rooms import SlotRooms
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios, StatisticsMemory


class Memories:
    """The memories of one object, by subject; None for those that its modules do without.

    `link`: returns the link of an attached program.
    """

    def __init__(
        self, maps: NamedMaps, drop_reasons: Sequence[str], link: Callable[[str], int | None]
    ) -> None:
        found = maps.descriptors
        self.slot_rooms = rooms = MappedArray.of_map(
            found[SLOT_ROOMS.name], SLOT_ROOM, len(Room) * MAX_SLOTS
        )
        self.drop_places = (
            DropPlaces(
                found[DROP_PLACES.name],
                lambda: link(NAME_DROP_PLACES),
                SlotRooms(rooms, Room.DROP_PLACES),
            )
            if DROP_PLACES.name in found
            else None
        )
        self.statistics = StatisticsMemory(found[STATS.name], list(drop_reasons), self.drop_places)
        self.configuration = ConfigMemory(found[CONFIGURATION.name])
        self.node_statistics = (
            NodeStatisticsMemory(found[NODE_STATS.name], found[HANDLER_NAMES.name])
            if NODE_STATS.name in found
            else None
        )
        self.socket_memory = MappedArray.of_map(
            found[SOCKET_MEMORIES.name], SOCKET_MEMORY, SOCKET_MEMORY_PLACES
        )
        self.thread_shares = (
            MappedArray.of_map(found[THREAD_SHARES.name], THREAD_SHARE, THREAD_SHARE_PLACES)
            if THREAD_SHARES.name in found
            else None
        )
        self.cgroup_waits = (
            CgroupWaits(maps, SlotRooms(rooms, Room.WAITS_FOR_CGROUPS))
            if WAITS_FOR_CGROUPS.name in found
            else None
        )
        clock = time.monotonic
        peers = PeerTable(found[PEERS.name], rooms, clock) if PEERS.name in found else None
        self.pending = (
            PendingMemory(
                found[PENDING_OF_SLOTS.name], found[PENDING_READINGS.name], peers, clock=clock
            )
            if PENDING_OF_SLOTS.name in found
            else None
        )
        # Last: libbpf's ring, unlike a mapping, is not freed with its object.
        self.ring = (
            PacketRing(found[TRACE_CONTROLS.name], found[TRACE_RING])
            if TRACE_RING in found
            else None
        )

    def admit(self, new: Collection[int], slots: Collection[int]) -> None:
        """Divide the tables that all targets share between these slots.

        `new`: those that have another target from now on.
        """
        self.configuration.reach(slots)
        if self.pending is not None:
            self.pending.forget(new)
        for table in (self.cgroup_waits, self.drop_places):
            if table is not None:
                table.admit(new, slots)

    def take(
        self, inactive: InactiveHalf, slots: Collection[int], ratios: SamplingRatios
    ) -> Mapping[int, Measurement]:
        """Return what these slots measured in the inactive half, with their waits for cgroups."""
        waits = self.cgroup_waits.take() if self.cgroup_waits is not None else {}
        return {
            slot: replace(measurement, counters={**measurement.counters, **waits.get(slot, {})})
            for slot, measurement in self.statistics.take(*inactive, slots, ratios).items()
        }

    def close(self) -> None:
        """Unmap all; the maps themselves live as long as their descriptors."""
        optional = (self.node_statistics, self.thread_shares, self.pending, self.ring)
        needed = (self.statistics, self.configuration, self.socket_memory, self.slot_rooms)
        for each in (*needed, *optional):
            if each is not None:
                each.close()
