"""The pause after a long reading of the kernel's objects.

A reading may visit each open file of the node. Long ones take at most a fiftieth of a core.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LONG_S = 0.01
PAUSE_FACTOR = 50


class ReadingPause:
    """The time from which one may read again. `clock`: of seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = -math.inf

    @property
    def is_over(self) -> bool:
        """True if one may read now."""
        return self._clock() >= self._until

    def note(self, began: float) -> None:
        """Note the end of a reading that began at this time."""
        took_s = self._clock() - began
        if took_s >= LONG_S:
            self._until = began + PAUSE_FACTOR * took_s
