"""The bound of the memory that the states of sockets take: bpf/include/sockets.h.

The programs charge each socket to its slot, to the node, and to a *share* of the node's memory.
They refuse what does not fit. Each tenant has a share that no other one can use. A socket that does
not fit there takes its memory from the share for all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from latencyprobe.domain.coverage import MEASURED, CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME, SOCKET_MODULES
from latencyprobe_agent.kernel.abi import (
    MEMORY_FOR_ALL,
    MEMORY_OF_NODE,
    SOCKET_MEMORY_PLACES,
)
from latencyprobe_agent.kernel.contract import LostPart, SocketMemoryLimits
from latencyprobe_agent.kernel.runtime.mapped_array import Growth, MappedArray, signed
from latencyprobe_agent.kernel.runtime.reading_pause import ReadingPause
from latencyprobe_agent.kernel.runtime.tenant_shares import TenantPlaces, divide

log = logging.getLogger(__name__)

# A socket keeps its memory, also if its tenant's share becomes smaller. So there is more for the
# shares of tenants that come: those of nine, each of which came when all before had used up theirs.
_WITH_LATER_SHARES = 1.5


class _Use(NamedTuple):
    """The memory that is in use at a place; `unreported_kib` is a part of it."""

    kib: int
    unreported_kib: int


class SocketMemory:
    """The bounds of one loaded object. Its maps are new, and so are all sockets' states.

    `table`: the elements of `socket_memory`, bpf/include/sockets.h. `count_sockets`: has the kernel
    count the sockets whose end nothing reports; returns False if it cannot, raises OSError if that
    fails. `is_full`: a socket of no known target was refused. `full_slots`: those with a refused
    socket.
    """

    def __init__(
        self,
        table: MappedArray,
        count_sockets: Callable[[], bool],
        limits: SocketMemoryLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._count_sockets = count_sockets
        self._clock = clock
        self._pause = ReadingPause(clock)
        self._limits = limits
        self._refusals = Growth(table, "refused")
        self._gone_unreported: dict[int, int] = {}
        self._shares = TenantPlaces(range(MEMORY_FOR_ALL + 1, SOCKET_MEMORY_PLACES))
        self._changes = 0
        self.is_full = False
        self.full_slots: frozenset[int] = frozenset()
        for place in (MEMORY_OF_NODE, MEMORY_FOR_ALL):
            table.set(place, "most_kib", limits.of_node)

    def admit(self, slots: Collection[int], tenants: Mapping[int, str]) -> None:
        """Give these slots their bound, each to a new target: of the one before nothing counts.

        `tenants`: those of all slots.
        """
        taken = self._shares.follow(frozenset(tenants.values()))
        self._renew((*slots, *taken))
        own, for_all = divide(self._limits.of_node, self._shares.present)
        self._table.set(MEMORY_FOR_ALL, "most_kib", for_all)
        most = _WITH_LATER_SHARES * self._limits.of_node if any(self._shares.present) else for_all
        self._table.set(MEMORY_OF_NODE, "most_kib", int(most))
        for place in self._shares.left.values():
            self._table.set(place, "most_kib", 0)
        for place in self._shares.present.values():
            self._table.set(place, "most_kib", own)
        for slot, tenant in tenants.items():
            self._table.set(slot, "share", self._shares.present[tenant])
        for slot in slots:
            self._table.set(slot, "most_kib", self._limits.of_target)

    def _renew(self, places: Collection[int]) -> None:
        """Let these places begin empty. Sockets that are charged to them count for the node alone.

        To programs the change of targets takes place at its end, when they see its number.
        """
        self._changes += 1
        for place in places:
            self._table.set(place, "since", self._changes)
            self._table.set(place, "gone_kib", self._table.get(place, "kib"))
            self._gone_unreported[place] = self._table.get(place, "unreported_kib")
            self._refusals.begin(place)
        self._table.set(MEMORY_OF_NODE, "since", self._changes)

    def read(self, slots: Collection[int]) -> None:
        """Find out if a socket of these slots, or of none, was refused since the last call.

        Where half of the memory is in use, count the sockets whose end nothing reports.
        """
        had_room = not (self.is_full or self.full_slots)
        refusing = {place for place in (*slots, MEMORY_OF_NODE) if self._refusals.take(place)}
        self.is_full = MEMORY_OF_NODE in refusing
        self.full_slots = frozenset(refusing.intersection(slots))
        if any(map(self._is_to_be_counted, self._places(slots))) and self._pause.is_over:
            self._count((*self._places(slots), *self._shares.left.values()))
        if had_room and refusing:
            log.warning("%s", lost_packets(self._limits).reason)

    def _places(self, slots: Collection[int]) -> tuple[int, ...]:
        """Return the places in use; a tenant without targets needs no room."""
        return (*slots, MEMORY_OF_NODE, MEMORY_FOR_ALL, *self._shares.present.values())

    def _is_to_be_counted(self, place: int) -> bool:
        """Decide whether room is needed."""
        use = self._use(place)
        return use.unreported_kib > 0 and 2 * use.kib > self._table.get(place, "most_kib")

    def _count(self, places: Collection[int]) -> None:
        """Have the kernel count the sockets whose end nothing reports, and correct the sums.

        A socket that comes at the very moment may be counted twice, until next time.
        """
        before = {place: self._use(place).unreported_kib for place in places}
        seen = {place: self._table.get(place, "counted_kib") for place in places}
        number = self._table.get(MEMORY_OF_NODE, "count") % 0xFF + 1  # 0: in no count
        self._table.set(MEMORY_OF_NODE, "count", number)
        began = self._clock()
        try:
            if not self._count_sockets():
                return
        except OSError as error:
            log.warning("cannot count the sockets that are measured: %s", error)
            return
        finally:
            self._pause.note(began)
        for place in places:
            counted = signed(self._table.get(place, "counted_kib") - seen[place])
            gone = before[place] - counted
            self._gone_unreported[place] = self._gone_unreported.get(place, 0) + gone
            self._table.add(place, "gone_kib", gone)

    def _use(self, place: int) -> _Use:
        kib = self._table.get(place, "kib") - self._table.get(place, "gone_kib")
        unreported = self._table.get(place, "unreported_kib") - self._gone_unreported.get(place, 0)
        return _Use(signed(kib), signed(unreported))


def full(
    coverage: tuple[StageCoverage, ...], limits: SocketMemoryLimits
) -> tuple[StageCoverage, ...]:
    """Return the coverage of a node with more sockets than it has memory for."""
    return tuple(_partial(stage, lost_packets(limits).reason) for stage in coverage)


def _partial(stage: StageCoverage, reason: str) -> StageCoverage:
    known = BY_NAME.get(stage.name)
    is_of_sockets = known is not None and known.module in SOCKET_MODULES
    if not is_of_sockets or stage.state not in MEASURED:
        return stage
    return stage.also(reason, CoverageState.PARTIAL)


def lost_packets(limits: SocketMemoryLimits) -> LostPart:
    """Return the reason why packets are lost."""
    return LostPart(
        SOCKET_MODULES,
        "some packets are counted as lost because the memory for sockets is full: "
        f"{limits.of_target / 1024:g} MiB a target, {limits.of_node / 1024:g} MiB a node, "
        "shared by namespaces",
    )
