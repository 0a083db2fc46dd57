"""The elements of `stats` that each slot counts in: one, or several for several CPUs.

All elements of a half are shared out, so that few targets have many. See bpf/include/histogram.h.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from latencyprobe_agent.kernel.abi import MAX_SLOTS

# More would make readings dearer than they make counting cheaper.
_MOST = 8


@dataclass(frozen=True, slots=True)
class Shards:
    """Adjacent elements of one half. `count`: a power of two."""

    first: int
    count: int

    def elements(self) -> range:
        """Return their numbers."""
        return range(self.first, self.first + self.count)


def share_out(slots: Collection[int], cpus: int) -> Mapping[int, Shards]:
    """Return the shards of each slot: as many as CPUs, or as there is room for.

    Raises ValueError for more slots than elements.
    """
    if len(slots) > MAX_SLOTS:
        raise ValueError(f"{len(slots)} slots, but only {MAX_SLOTS} elements")
    count = min(_MOST, 1 << (max(cpus, 1) - 1).bit_length())
    while count * len(slots) > MAX_SLOTS:
        count //= 2
    return {slot: Shards(count * place, count) for place, slot in enumerate(sorted(slots))}
