"""The events by which drivers free packets: hooked while targets send by a device with a driver.

`consume_skb` also happens for each message of a UNIX socket, and for many buffers besides. Most
packets between pods pass no driver that completes them, so these programs are detached after a
while without one that does. They are attached again with the next reading after such a packet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

IDLE_S = 120.0


class DriverUse:
    """The time since a target's packet was given to a driver. `clock`: of seconds, for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used = clock()

    def is_recent(self, used: bool) -> bool:
        """Return True if the programs are wanted; `used`: since the last call."""
        if used:
            self._used = self._clock()
        return self._clock() - self._used < IDLE_S
