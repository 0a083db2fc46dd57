"""The bounds of the memory that targets take: for the states of sockets, and for threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe_agent.kernel.contract import (
    LostPart,
    SlotSpec,
    SocketMemoryLimits,
    ThreadLimits,
)
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.mapped_array import MappedArray
from latencyprobe_agent.kernel.runtime.named_maps import NamedMaps
from latencyprobe_agent.kernel.runtime.socket_memory import SocketMemory, full, lost_packets
from latencyprobe_agent.kernel.runtime.threads import Threads, lost_waits


class TargetBounds:
    """The bounds in one object after the other, each from `follow` to `leave`.

    `lost_parts`: the parts of slots that were lost in the last reading, by slot.
    """

    def __init__(self, of_sockets: SocketMemoryLimits, of_threads: ThreadLimits) -> None:
        self._of_sockets = of_sockets
        self._of_threads = of_threads
        self._threads: Threads | None = None
        self.socket_memory: SocketMemory | None = None
        self.lost_parts: Mapping[int, Sequence[LostPart]] = {}

    def follow(
        self,
        socket_memory: MappedArray,
        count_sockets: Callable[[], bool],
        thread_shares: MappedArray | None,
        maps: NamedMaps,
    ) -> None:
        """Use these memories of another object. `thread_shares`: None if no thread is followed."""
        self.socket_memory = SocketMemory(socket_memory, count_sockets, self._of_sockets)
        if thread_shares is not None:
            self._threads = Threads(maps, thread_shares, self._of_threads)

    def leave(self) -> None:
        """Forget the present object, which ends."""
        self.socket_memory = self._threads = None
        self.lost_parts = {}

    def admit(self, new: Collection[int], slots: Mapping[int, SlotSpec]) -> None:
        """Have each tenant's share ready before a program counts for one of its new slots."""
        tenants = {slot: spec.tenant for slot, spec in slots.items()}
        if self.socket_memory is not None:
            self.socket_memory.admit(new, tenants)
        if self._threads is not None:
            self._threads.admit(new, tenants)

    def forget_gone_threads(self) -> None:
        """Forget the threads of slots that are gone, once no program counts for them any more."""
        if self._threads is not None and self._threads.gone_slots:
            wait_for_running_programs()
            self._threads.forget_gone()

    def read(self, slots: Collection[int]) -> None:
        """Find the parts that these slots have lost since the last call."""
        lost: dict[int, list[LostPart]] = {}
        if self.socket_memory is not None:
            self.socket_memory.read(slots)
            for slot in self.socket_memory.full_slots:
                lost.setdefault(slot, []).append(lost_packets(self._of_sockets))
        if self._threads is not None:
            self._threads.read(slots)
            for slot in self._threads.full_slots:
                lost.setdefault(slot, []).append(lost_waits(self._of_threads))
        self.lost_parts = lost

    def mention(self, coverage: tuple[StageCoverage, ...]) -> tuple[StageCoverage, ...]:
        """Return the coverage with the reason, if a socket of no known target was refused."""
        if self.socket_memory is None or not self.socket_memory.is_full:
            return coverage
        return full(coverage, self._of_sockets)
