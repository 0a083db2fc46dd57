"""Clocks for times that are compared with times of another process."""

from __future__ import annotations

import time
from collections.abc import Callable


def boot_clock() -> float:
    """Return seconds since the boot, those in which the machine was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since the epoch that passes evenly from now on.

    It begins at the wall clock. If that is set later, this one does not follow.
    """
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s
