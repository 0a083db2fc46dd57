"""Delays between attempts to reach something that is away."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double up to a limit, each shortened at random by up to half.

    The jitter keeps a thousand connections that broke together from coming back together.
    """

    __slots__ = ("_first_s", "_longest_s", "_next_s")

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next(self) -> float:
        """Return the seconds to wait now."""
        delay_s = min(self._next_s, self._longest_s)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return delay_s * random.uniform(0.5, 1)  # noqa: S311  (no secret)

    def reset(self) -> None:
        """Begin again with the first delay: the last attempt succeeded."""
        self._next_s = self._first_s
