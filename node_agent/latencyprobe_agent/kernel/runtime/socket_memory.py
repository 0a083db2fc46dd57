"""The bound of the memory that the states of sockets take: bpf/include/sockets.h.

The programs charge each socket to its slot and to the node, and refuse what does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME, Module
from latencyprobe_agent.kernel.abi import MAX_SLOTS, SOCKET_MEMORIES
from latencyprobe_agent.kernel.contract import SocketMemoryLimits
from latencyprobe_agent.kernel.hooks import COUNT_SOCKETS

log = logging.getLogger(__name__)

_OF_NODE = MAX_SLOTS
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


class SocketMemory:
    """The bounds of one loaded object. Its maps are new, and so are all sockets' states."""

    def __init__(self, maps: MapAccess, limits: SocketMemoryLimits) -> None:
        self._maps = maps
        self._limits = limits
        self._refused: dict[int, int] = {}
        self._number = 0
        self.is_full = False
        self._write(_OF_NODE, _Entry(most_kib=limits.of_node))

    def admit(self, slots: Iterable[int]) -> None:
        """Give these slots their bound, each to a new target: of the one before nothing counts."""
        for slot in slots:
            tenant = self._read(slot).tenant + 1
            self._write(slot, _Entry(most_kib=self._limits.of_target, tenant=tenant & 0xFF))
            self._refused.pop(slot, None)

    def read(self, slots: Collection[int]) -> None:
        """Find out if a socket of these slots, or of the node, was refused since the last call.

        Where half of the memory is in use, count the sockets whose end nothing reports.
        """
        was_full, self.is_full = self.is_full, False
        used = {place: self._read(place) for place in (*slots, _OF_NODE)}
        for place, entry in used.items():
            self.is_full |= entry.refused != self._refused.get(place, 0)
            self._refused[place] = entry.refused
        if any(entry.unreported_kib and 2 * entry.kib > entry.most_kib for entry in used.values()):
            self._count(used)
        if self.is_full and not was_full:
            log.warning("%s", _reason(self._limits))

    def _count(self, before: Mapping[int, _Entry]) -> None:
        """Have the kernel count the sockets whose end nothing reports, and correct the sums.

        Those that come or go at the very moment may be missed, or counted twice, until next time.
        """
        self._number = self._number % 0xFF + 1  # 0: of sockets that no count has seen
        for place, entry in before.items():
            tenant = self._number if place == _OF_NODE else entry.tenant
            self._write(place, entry._replace(counted_kib=0, tenant=tenant))
        try:
            if not self._maps.iterate(COUNT_SOCKETS):
                return
        except OSError as error:
            log.warning("cannot count the sockets that are measured: %s", error)
            return
        for place, entry in before.items():
            after = self._read(place)
            gone = entry.unreported_kib - after.counted_kib
            self._write(
                place,
                after._replace(kib=after.kib - gone, unreported_kib=after.unreported_kib - gone),
            )

    def used_kib(self, slot: int | None = None) -> int:
        """Return what the sockets of a slot take, or those of the node."""
        return self._read(_OF_NODE if slot is None else slot).kib

    def _read(self, place: int) -> _Entry:
        key = SOCKET_MEMORIES.key.pack(place)
        value = self._maps.look_up(SOCKET_MEMORIES.name, key, SOCKET_MEMORIES.value.size)
        return _Entry(*SOCKET_MEMORIES.value.unpack(value)) if value else _Entry()

    def _write(self, place: int, entry: _Entry) -> None:
        packed = SOCKET_MEMORIES.value.pack(*entry)
        self._maps.write(SOCKET_MEMORIES.name, {SOCKET_MEMORIES.key.pack(place): packed})


def full(
    coverage: tuple[StageCoverage, ...], limits: SocketMemoryLimits
) -> tuple[StageCoverage, ...]:
    """Return the coverage of a node with more sockets than it has memory for."""
    return tuple(_partial(stage, _reason(limits)) for stage in coverage)


def _partial(stage: StageCoverage, reason: str) -> StageCoverage:
    known = BY_NAME.get(stage.name)
    is_of_sockets = known is not None and known.module in _SOCKET_MODULES
    if not is_of_sockets or stage.state not in (CoverageState.ACTIVE, CoverageState.PARTIAL):
        return stage
    reasons = [stage.reason, reason] if stage.reason else [reason]
    return replace(stage, state=CoverageState.PARTIAL, reason="; ".join(reasons))


def _reason(limits: SocketMemoryLimits) -> str:
    return (
        "some packets are counted as lost because the memory for sockets is full: "
        f"{limits.of_target / 1024:g} MiB a target, {limits.of_node / 1024:g} MiB a node"
    )
