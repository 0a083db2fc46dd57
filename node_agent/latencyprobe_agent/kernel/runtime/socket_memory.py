"""The bound of the memory that the states of sockets take: bpf/include/sockets.h.

The programs charge each socket to its slot, to the node, and to a *share* of the node's memory.
They refuse what does not fit. Each tenant has a share that no other one can use. A socket that does
not fit there takes its memory from the share for all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME, Module
from latencyprobe_agent.kernel.abi import (
    MEMORY_FOR_ALL,
    MEMORY_OF_NODE,
    SOCKET_MEMORIES,
    SOCKET_MEMORY_PLACES,
)
from latencyprobe_agent.kernel.contract import SocketMemoryLimits
from latencyprobe_agent.kernel.hooks import COUNT_SOCKETS

log = logging.getLogger(__name__)

_OF_TENANTS = range(MEMORY_FOR_ALL + 1, SOCKET_MEMORY_PLACES)
# A count looks at each open file of the node. Long ones take at most this part of a core.
_LONG_COUNT_S = 0.01
_PAUSE_FACTOR = 50
_SOCKET_MODULES = frozenset({Module.RX, Module.TX, Module.TCP})


class MapAccess(Protocol):
    """The maps of a loaded object."""

    def write(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        """Set entries of a map."""

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        """Return the value of one entry; None if it does not exist."""

    def iterate(self, function: str) -> bool:
        """Run an iterator's program for each object; return False if it is not attached."""


class _Entry(NamedTuple):
    """`struct socket_memory`, bpf/include/sockets.h."""

    kib: int = 0
    most_kib: int = 0
    unreported_kib: int = 0
    counted_kib: int = 0
    tenant: int = 0
    refused: int = 0
    share: int = 0


class SocketMemory:
    """The bounds of one loaded object. Its maps are new, and so are all sockets' states.

    `is_full`: a socket of no known target was refused. `full_slots`: those with a refused socket.
    """

    def __init__(
        self,
        maps: MapAccess,
        limits: SocketMemoryLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps = maps
        self._clock = clock
        self._next_count = -math.inf
        self._limits = limits
        self._refused: dict[int, int] = {}
        self._shares: dict[str, int] = {}
        self._number = 0
        self.is_full = False
        self.full_slots: frozenset[int] = frozenset()
        self._write(MEMORY_OF_NODE, _Entry(most_kib=limits.of_node))
        self._write(MEMORY_FOR_ALL, _Entry(most_kib=limits.of_node))

    def admit(self, slots: Collection[int], tenants: Mapping[int, str]) -> None:
        """Give these slots their bound, each to a new target: of the one before nothing counts.

        `tenants`: those of all slots.
        """
        self._share_out(frozenset(tenants.values()))
        for slot, tenant in tenants.items():
            before, share = self._read(slot), self._shares.get(tenant, MEMORY_FOR_ALL)
            if slot in slots:
                number = (before.tenant + 1) & 0xFF
                self._write(
                    slot, _Entry(most_kib=self._limits.of_target, tenant=number, share=share)
                )
                self._refused.pop(slot, None)
            elif before.share != share:
                self._write(slot, before._replace(share=share))

    def _share_out(self, tenants: frozenset[str]) -> None:
        """Set the shares of these tenants. One that has left keeps its place while it is in use."""
        for gone in self._shares.keys() - tenants:
            if self._read(self._shares[gone]).kib <= 0:
                del self._shares[gone]
        for new in sorted(tenants - self._shares.keys()):
            free = (place for place in _OF_TENANTS if place not in self._shares.values())
            place = next(free, None)
            if place is None:
                break
            self._shares[new] = place
            self._write(place, _Entry())
        own, for_all = shares_kib(self._limits.of_node, tenants)
        self._bound(MEMORY_FOR_ALL, for_all)
        for tenant, place in self._shares.items():
            self._bound(place, own if tenant in tenants else 0)

    def _bound(self, place: int, most_kib: int) -> None:
        """Set a bound. A charge of a program at this very moment may be missed."""
        entry = self._read(place)
        if entry.most_kib != most_kib:
            self._write(place, entry._replace(most_kib=most_kib))

    def read(self, slots: Collection[int]) -> None:
        """Find out if a socket of these slots, or of none, was refused since the last call.

        Where half of the memory is in use, count the sockets whose end nothing reports.
        """
        had_room = not (self.is_full or self.full_slots)
        places = (*slots, MEMORY_OF_NODE, MEMORY_FOR_ALL, *self._shares.values())
        used = {place: self._read(place) for place in places}
        refusing = {place for place, entry in used.items() if self._has_refused(place, entry)}
        self.is_full = MEMORY_OF_NODE in refusing
        self.full_slots = frozenset(refusing.intersection(slots))
        if any(map(_is_to_be_counted, used.values())) and self._clock() >= self._next_count:
            self._count(used)
        if had_room and refusing:
            log.warning("%s", shortage(self._limits))

    def _has_refused(self, place: int, entry: _Entry) -> bool:
        before, self._refused[place] = self._refused.get(place, 0), entry.refused
        return before != entry.refused

    def _count(self, before: Mapping[int, _Entry]) -> None:
        """Have the kernel count the sockets whose end nothing reports, and correct the sums.

        Those that come or go at the very moment may be missed, or counted twice, until next time.
        """
        self._number = self._number % 0xFF + 1  # 0: of sockets that no count has seen
        for place, entry in before.items():
            tenant = self._number if place == MEMORY_OF_NODE else entry.tenant
            self._write(place, entry._replace(counted_kib=0, tenant=tenant))
        began = self._clock()
        try:
            if not self._maps.iterate(COUNT_SOCKETS):
                return
        except OSError as error:
            log.warning("cannot count the sockets that are measured: %s", error)
            return
        finally:
            took_s = self._clock() - began
            if took_s >= _LONG_COUNT_S:
                self._next_count = began + _PAUSE_FACTOR * took_s
        for place, entry in before.items():
            after = self._read(place)
            gone = entry.unreported_kib - after.counted_kib
            self._write(
                place,
                after._replace(kib=after.kib - gone, unreported_kib=after.unreported_kib - gone),
            )

    def _read(self, place: int) -> _Entry:
        key = SOCKET_MEMORIES.key.pack(place)
        value = self._maps.look_up(SOCKET_MEMORIES.name, key, SOCKET_MEMORIES.value.size)
        return _Entry(*SOCKET_MEMORIES.value.unpack(value)) if value else _Entry()

    def _write(self, place: int, entry: _Entry) -> None:
        packed = SOCKET_MEMORIES.value.pack(*entry)
        self._maps.write(SOCKET_MEMORIES.name, {SOCKET_MEMORIES.key.pack(place): packed})


def _is_to_be_counted(entry: _Entry) -> bool:
    """Decide whether room is needed. A tenant without targets has a share of none, and needs none.

    Its sockets may stay open for ever.
    """
    return entry.unreported_kib > 0 and 0 < entry.most_kib < 2 * entry.kib


def shares_kib(of_node: int, tenants: Collection[str]) -> tuple[int, int]:
    """Return the share of each tenant, and the one for all, of a node's memory.

    One more tenant may come: its share is left free.
    """
    if not any(tenants):
        return of_node, of_node
    half = of_node // 2
    return half // (len(tenants) + 1), half


def full(
    coverage: tuple[StageCoverage, ...], limits: SocketMemoryLimits
) -> tuple[StageCoverage, ...]:
    """Return the coverage of a node with more sockets than it has memory for."""
    return tuple(_partial(stage, shortage(limits)) for stage in coverage)


def _partial(stage: StageCoverage, reason: str) -> StageCoverage:
    known = BY_NAME.get(stage.name)
    is_of_sockets = known is not None and known.module in _SOCKET_MODULES
    if not is_of_sockets or stage.state not in (CoverageState.ACTIVE, CoverageState.PARTIAL):
        return stage
    reasons = [stage.reason, reason] if stage.reason else [reason]
    return replace(stage, state=CoverageState.PARTIAL, reason="; ".join(reasons))


def shortage(limits: SocketMemoryLimits) -> str:
    """Return the reason why packets are lost."""
    return (
        "some packets are counted as lost because the memory for sockets is full: "
        f"{limits.of_target / 1024:g} MiB a target, {limits.of_node / 1024:g} MiB a node, "
        "shared by namespaces"
    )
