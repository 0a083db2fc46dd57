"""A pace: so many at once, and then one now and then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pace:
    """That many at once, `burst`, and one more in each `interval_s`. Times are of one clock.

    `full_at`: the time when `burst` are possible at once again.
    """

    burst: int
    interval_s: float
    full_at: float = 0.0

    def wait_s(self, now: float) -> float:
        """Return the time until the next one is possible; 0 or less: it is now."""
        return self.full_at - now - (self.burst - 1) * self.interval_s

    def count(self, now: float) -> None:
        """Note that there is one now. It delays those after it, even if it came too early."""
        self.full_at = max(self.full_at, now) + self.interval_s
