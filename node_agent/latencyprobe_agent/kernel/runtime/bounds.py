"""The parts that targets lose: to the bounds of memory, or since no hook shows their traffic."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import (
    LostPart,
    SlotSpec,
    SocketMemoryLimits,
    ThreadLimits,
)
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.named_maps import MapEntries
from latencyprobe_agent.kernel.runtime.obstacles import lost_part
from latencyprobe_agent.kernel.runtime.peers import LOST_PEERS
from latencyprobe_agent.kernel.runtime.pod_obstacles import PodObstacles
from latencyprobe_agent.kernel.runtime.socket_memory import SocketMemory, full, lost_packets
from latencyprobe_agent.kernel.runtime.threads import Threads, lost_waits

# By counter. It is the target's own traffic that has no figures, and not the node's.
_UNMATCHED: Mapping[str, LostPart] = {
    "fragmentedPackets": LostPart(
        frozenset({Module.RX}), "packets that arrived in fragments are unmatched"
    ),
    "mptcpSegments": LostPart(
        frozenset({Module.RX, Module.TX, Module.TCP}),
        "packets of MPTCP are unmatched, because no hook shows when applications read and write "
        "them",
    ),
}


class TargetBounds:
    """The bounds in one object after the other, each from `follow` to `leave`.

    `lost_parts`: the parts of slots that were lost by the last reading, by slot. What a target's
    traffic lacks stays until the slot has another target.
    """

    def __init__(self, of_sockets: SocketMemoryLimits, of_threads: ThreadLimits) -> None:
        self._of_sockets = of_sockets
        self._of_threads = of_threads
        self._threads: Threads | None = None
        self._obstacles: PodObstacles | None = None
        self.socket_memory: SocketMemory | None = None
        self.lost_parts: Mapping[int, Sequence[LostPart]] = {}
        self._unmatched: dict[int, dict[str, LostPart]] = {}
        self._specs: Mapping[int, SlotSpec] = {}

    def follow(
        self,
        socket_memory: MappedArray,
        count_sockets: Callable[[], bool],
        thread_shares: MappedArray | None,
        maps: MapEntries,
    ) -> None:
        """Use these memories of another object. `thread_shares`: None if no thread is followed."""
        self.socket_memory = SocketMemory(socket_memory, count_sockets, self._of_sockets)
        self._obstacles = PodObstacles(maps)
        if thread_shares is not None:
            self._threads = Threads(maps, thread_shares, self._of_threads)

    def leave(self) -> None:
        """Forget the present object, which ends."""
        self.socket_memory = self._threads = self._obstacles = None
        self.lost_parts = {}

    def admit(self, new: Collection[int], slots: Mapping[int, SlotSpec]) -> None:
        """Have each tenant's share ready before a program counts for one of its new slots."""
        tenants = {slot: spec.tenant for slot, spec in slots.items()}
        self._unmatched = {
            slot: parts
            for slot, parts in self._unmatched.items()
            if slot in slots and slots[slot] == self._specs.get(slot)
        }
        self._specs = slots
        if self.socket_memory is not None:
            self.socket_memory.admit(new, tenants)
        if self._threads is not None:
            self._threads.admit(new, tenants)

    def forget_gone_threads(self) -> None:
        """Forget the threads of slots that are gone, once no program counts for them any more."""
        if self._threads is not None and self._threads.gone_slots:
            wait_for_running_programs()
            self._threads.forget_gone()

    def read(
        self,
        slots: Collection[int],
        news: Mapping[int, Measurement],
        crowded: Collection[int] = (),
    ) -> None:
        """Find the parts that these slots have lost since the last call. `news`: their figures.

        `crowded`: the slots with peers that had no room.
        """
        self._note_unmatched(news)
        lost = {
            slot: list(self._unmatched[slot].values()) for slot in slots if slot in self._unmatched
        }
        for slot in crowded:
            lost.setdefault(slot, []).append(LOST_PEERS)
        if self.socket_memory is not None:
            self.socket_memory.read(slots)
            for slot in self.socket_memory.full_slots:
                lost.setdefault(slot, []).append(lost_packets(self._of_sockets))
        if self._threads is not None:
            self._threads.read(slots)
            for slot in self._threads.full_slots:
                lost.setdefault(slot, []).append(lost_waits(self._of_threads))
        self.lost_parts = lost

    def _note_unmatched(self, news: Mapping[int, Measurement]) -> None:
        """Note what the targets' own traffic and devices lack, until they have other targets."""
        for slot, measurement in news.items():
            for counter, part in _UNMATCHED.items():
                if measurement.counters.get(counter):
                    self._unmatched.setdefault(slot, {})[counter] = part
        if self._obstacles is not None:
            for slot, obstacle, detail in self._obstacles.take(self._specs):
                of_slot = self._unmatched.setdefault(slot, {})
                of_slot[obstacle.name] = lost_part(obstacle, detail)

    def mention(self, coverage: tuple[StageCoverage, ...]) -> tuple[StageCoverage, ...]:
        """Return the coverage with the reason, if a socket of no known target was refused."""
        if self.socket_memory is None or not self.socket_memory.is_full:
            return coverage
        return full(coverage, self._of_sockets)
