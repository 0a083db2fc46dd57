"""The threads that the module sched follows: bpf/modules/sched.bpf.c.

The programs count each thread for its slot, and for a *share* of the table. Each tenant has a share
that no other one can use. A thread that does not fit there takes a place of the share for all.

A program forgets a thread of no target when it next runs. Threads that sleep for ever would keep
their places. So they are forgotten with their slot. If a share becomes smaller, since another
tenant came, as many of its threads are forgotten as it has too many.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import (
    THREAD,
    THREAD_SHARE_PLACES,
    THREADS,
    THREADS_FOR_ALL,
)
from latencyprobe_agent.kernel.contract import EngineError, LostPart, ThreadLimits
from latencyprobe_agent.kernel.runtime.mapped_array import Growth, MappedArray, signed
from latencyprobe_agent.kernel.runtime.named_maps import MapEntries
from latencyprobe_agent.kernel.runtime.tenant_shares import TenantPlaces, divide

log = logging.getLogger(__name__)

_PLACES = THREAD.part("slot", "share")
_PLACES_OFFSET = THREAD.offset("slot")


class _Thread(NamedTuple):
    """An entry, and the places that it counts for."""

    key: bytes
    slot: int
    share: int


class Threads:
    """The threads of one loaded object, whose maps are new.

    `table`: the elements of `thread_shares`. `full_slots`: those of which a thread found no place.
    `gone_slots`: those whose threads are to be forgotten.
    """

    def __init__(self, maps: MapEntries, table: MappedArray, limits: ThreadLimits) -> None:
        self._maps = maps
        self._table = table
        self._limits = limits
        self._shares = TenantPlaces(range(THREADS_FOR_ALL + 1, THREAD_SHARE_PLACES))
        self._tenants: Mapping[int, str] = {}
        self._refusals = Growth(table, "refused")
        self.gone_slots: frozenset[int] = frozenset()
        self.full_slots: frozenset[int] = frozenset()

    def admit(self, slots: Collection[int], tenants: Mapping[int, str]) -> None:
        """Give these slots their bound, each to a new target. `tenants`: those of all slots.

        Of those that the new shares have too many of, threads are forgotten.
        """
        self.gone_slots |= {
            slot for slot, tenant in self._tenants.items() if tenants.get(slot) != tenant
        }
        self._tenants = dict(tenants)
        self._shares.follow(frozenset(tenants.values()))
        for slot in slots:
            self._refusals.begin(slot)
        own, for_all = divide(self._limits.of_node, self._shares.present)
        bounds = dict.fromkeys(self._shares.present.values(), own)
        bounds[THREADS_FOR_ALL] = for_all
        for place in (*slots, *bounds):
            self._table.set(place, "most", bounds.get(place, self._limits.of_target))
        for slot, tenant in tenants.items():
            self._table.set(slot, "share", self._shares.present[tenant])
        excess = Counter({place: self._taken(place) - most for place, most in bounds.items()})
        self._forget_excess(+excess)

    def forget_gone(self) -> None:
        """Forget the threads of `gone_slots`. One that still has an owner is met again as it runs.

        Call it when no program counts for these slots any more.
        """
        if self._is_forgotten(each for each in self._all() if each.slot in self.gone_slots):
            self.gone_slots = frozenset()

    def read(self, slots: Collection[int]) -> None:
        """Find out if a thread of these slots found no place since the last call."""
        had_room = not self.full_slots
        self.full_slots = frozenset(filter(self._refusals.take, slots))
        if had_room and self.full_slots:
            log.warning("%s", lost_waits(self._limits).reason)

    def _taken(self, place: int) -> int:
        return signed(self._table.get(place, "threads") - self._table.get(place, "forgotten"))

    def _all(self) -> Iterable[_Thread]:
        """Yield all threads, as they are at some time during the call."""
        for key in self._maps.keys(THREADS.name, THREADS.key.size):
            value = self._maps.look_up(THREADS.name, key, THREADS.value.size)
            if value is not None:
                yield _Thread(key, *_PLACES.unpack_from(value, _PLACES_OFFSET))

    def _forget_excess(self, excess: Counter[int]) -> None:
        """Forget so many threads of these places."""
        if not excess:
            return

        def is_too_much(thread: _Thread) -> bool:
            excess[thread.share] -= 1
            return excess[thread.share] >= 0

        self._is_forgotten(filter(is_too_much, self._all()))

    def _is_forgotten(self, threads: Iterable[_Thread]) -> bool:
        """Forget these; return False if the map cannot be read or written now."""
        try:
            for thread in tuple(threads):
                if self._maps.erase(THREADS.name, (thread.key,)):
                    for place in (thread.slot, thread.share):
                        self._table.add(place, "forgotten", 1)
        except EngineError as error:
            log.warning("cannot forget threads: %s; the next change of targets tries again", error)
            return False
        return True


def lost_waits(limits: ThreadLimits) -> LostPart:
    """Return the reason why threads are lost."""
    return LostPart(
        frozenset({Module.SCHED}),
        "the waits of some threads are counted as lost because the table of threads is full: "
        f"{limits.of_target:,} a target, {limits.of_node:,} a node, shared by namespaces",
    )
