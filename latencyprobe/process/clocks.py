"""Clocks for times that are compared with times of another process."""

from __future__ import annotations

import time
from collections.abc import Callable


def steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since the epoch that passes evenly from now on.

    It begins at the wall clock. If that is set later, this one does not follow.
    """
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s
