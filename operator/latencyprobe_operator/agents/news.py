"""News of one agent: its targets or stages have changed, and its probes are to be checked.

Each change may write a status of every probe on the node. So an agent whose states flap is heard at
once a few times, and then now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from latencyprobe_operator.pace import Pace

# That many changes at once, and one more in each of these times.
BURST = 20
PACE_S = 10.0


class PacedNews:
    """Calls of `pass_on`, one for each change, or for several changes together."""

    __slots__ = ("_later", "_pace", "_pass_on")

    def __init__(self, pass_on: Callable[[], None]) -> None:
        self._pass_on = pass_on
        self._pace = Pace(BURST, PACE_S)
        self._later: asyncio.TimerHandle | None = None

    def note(self) -> None:
        """Pass on a change, now or later."""
        if self._later:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._pace.wait_s(loop.time())
        if wait_s <= 0:
            self._call()
        else:
            self._later = loop.call_later(wait_s, self._call)

    def cancel(self) -> None:
        """Forget what is still to be passed on."""
        if self._later:
            self._later.cancel()
            self._later = None

    def _call(self) -> None:
        self._later = None
        self._pace.count(asyncio.get_running_loop().time())
        self._pass_on()
