"""The threads that the module sched follows: bpf/modules/sched.bpf.c.

A program forgets a thread of no target when it next runs. Threads that sleep for ever would keep
their places, and count for the next target of their slot. So they are forgotten with their slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from latencyprobe_agent.kernel.abi import THREAD, THREAD_COUNTS, THREADS

_SLOT = THREAD.part("slot")
_SLOT_OFFSET = THREAD.offset("slot")


class ThreadMaps(Protocol):
    """The maps of a loaded object."""

    def write(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        """Set entries of a map."""

    def look_up(self, name: str, key: bytes, value_bytes: int) -> bytes | None:
        """Return the value of one entry; None if it does not exist."""

    def erase(self, name: str, keys: Iterable[bytes]) -> None:
        """Delete the entries of a map that exist."""

    def keys(self, name: str, key_bytes: int) -> set[bytes]:
        """Return the present keys of a map."""


def forget_threads(maps: ThreadMaps, slots: Collection[int]) -> None:
    """Forget the threads of these slots. One that still has an owner is met again as it runs."""

    def is_of_these(key: bytes) -> bool:
        value = maps.look_up(THREADS.name, key, THREADS.value.size)
        return value is not None and _SLOT.unpack_from(value, _SLOT_OFFSET)[0] in slots

    found = maps.keys(THREADS.name, THREADS.key.size)
    maps.erase(THREADS.name, [key for key in found if is_of_these(key)])
    none = THREAD_COUNTS.value.pack(0)
    maps.write(THREAD_COUNTS.name, {THREAD_COUNTS.key.pack(slot): none for slot in slots})
