"""How long to wait before the next attempt at something that is away."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double up to a limit, each shortened at random by up to half.

    The jitter keeps a thousand connections that broke together from coming back together.
    """

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._attempts = 0

    def next(self) -> float:
        """The seconds to wait now."""
        # 2**30 times anything is beyond every limit, and an int of a year's attempts is not needed.
        delay: float = min(self._first * 2.0 ** min(self._attempts, 30), self._longest)
        self._attempts += 1
        return delay * random.uniform(0.5, 1)  # noqa: S311 - spreads load, keeps no secret

    def reset(self) -> None:
        """Begin again with the first delay: the last attempt succeeded."""
        self._attempts = 0
