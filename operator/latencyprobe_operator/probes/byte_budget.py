"""The bytes that one probe's status may take of the API server: a mean per minute, with bursts."""

from __future__ import annotations

from collections.abc import Callable

# 64 KiB a minute over any hour, the burst included.
BYTES_PER_MINUTE = 54 * 1024
# Two statuses of the largest size.
BURST_BYTES = 512 * 1024


class ByteBudget:
    """A meter of the bytes of writes. `clock`: seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at: float | None = None
        self._left = float(BURST_BYTES)

    def has(self, size: float, *, in_advance: bool = False) -> bool:
        """Decide whether a write of this size is within the budget.

        `in_advance`: it may take the bytes of a burst that are due later.
        """
        self._refill()
        return self._left + (BURST_BYTES if in_advance else 0) >= size

    def take(self, size: int) -> None:
        """Count a write. One beyond the budget delays those after it."""
        self._refill()
        self._left -= size

    def _refill(self) -> None:
        now = self._clock()
        passed_s = now - self._at if self._at is not None else 0.0
        self._at = now
        self._left = min(self._left + passed_s * BYTES_PER_MINUTE / 60, BURST_BYTES)
