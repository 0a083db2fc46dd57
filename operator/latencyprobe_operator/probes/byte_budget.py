"""The bytes that one probe's status may take of the API server: a mean per minute, with bursts."""

from __future__ import annotations

from collections.abc import Callable

# 64 KiB a minute over any hour, the burst included.
BYTES_PER_MINUTE = 54 * 1024
# Two statuses of the largest size: one for noise, and one that is kept for news of the worst pod.
BURST_BYTES = 512 * 1024
# Of these, for writes without rows of pods while the budget has nothing left.
LIGHT_BYTES_PER_MINUTE = BYTES_PER_MINUTE // 2
LIGHT_BURST_BYTES = 64 * 1024


class ByteBudget:
    """A meter of the bytes of writes. `clock`: seconds of a monotonic clock.

    `debt`: the most that a write beyond the budget delays those after it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        per_minute: int = BYTES_PER_MINUTE,
        burst: int = BURST_BYTES,
        debt: int = BURST_BYTES,
    ) -> None:
        self._clock = clock
        self._at: float | None = None
        self._bytes_per_s = per_minute / 60
        self._left, self._most = float(burst), burst
        self._least = -debt

    def has(self, size: float, *, in_advance: bool = False) -> bool:
        """Decide whether a write of this size is within the budget.

        `in_advance`: it may take the bytes of a burst that are due later.
        """
        self._refill()
        return self._left + (self._most if in_advance else 0) >= size

    def take(self, size: int) -> None:
        """Count a write. One beyond the budget delays those after it, up to a limit."""
        self._refill()
        self._left = max(self._left - size, self._least)

    def _refill(self) -> None:
        now = self._clock()
        passed_s = now - self._at if self._at is not None else 0.0
        self._at = now
        self._left = min(self._left + passed_s * self._bytes_per_s, self._most)
