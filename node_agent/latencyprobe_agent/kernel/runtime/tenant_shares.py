"""The shares of tenants in the memory for sockets, and in the table of threads.

Each tenant has a share that no other one can use. What does not fit there takes from the share for
all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping


def divide(total: int, tenants: Collection[str]) -> tuple[int, int]:
    """Return the share of each tenant, and the one for all.

    One more tenant may come: its share is left free. Without tenants, all is for all.
    """
    if not any(tenants):
        return total, total
    half = total // 2
    return half // (len(tenants) + 1), half


class TenantPlaces:
    """The place of each tenant's share in a table.

    A tenant that leaves keeps its place until no other one is unused, since programs may still
    count for it.
    """

    def __init__(self, places: Collection[int]) -> None:
        self._unused = deque(places)
        self._present: dict[str, int] = {}
        self._left: dict[str, int] = {}  # the first one has left first

    @property
    def present(self) -> Mapping[str, int]:
        """The places of the present tenants."""
        return self._present

    @property
    def left(self) -> Mapping[str, int]:
        """The places of tenants that have left."""
        return self._left

    def follow(self, tenants: Collection[str]) -> Collection[int]:
        """Give each of these tenants a place; return those that have a new user."""
        for gone in sorted(self._present.keys() - set(tenants)):
            self._left[gone] = self._present.pop(gone)
        taken = []
        for tenant in sorted(set(tenants) - self._present.keys()):
            place = self._left.pop(tenant, None)
            if place is None:
                place = self._next()
                taken.append(place)
            self._present[tenant] = place
        return taken

    def _next(self) -> int:
        if self._unused:
            return self._unused.popleft()
        return self._left.pop(next(iter(self._left)))
