"""Log lines that a peer, or a lack of resources, may cause again and again.

Of each kind, one line is logged in an interval. The next one has the number of those in between.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable

INTERVAL_S = 10.0


class RepeatedLines:
    """A rate limit for lines of a log. `clock`: seconds of a monotonic clock.

    `more`: the end of a line before which others were omitted, with a place for their number.
    Its kinds are few, and never made of a peer's text.
    """

    __slots__ = ("_clock", "_logged", "_more", "_omitted", "log")

    def __init__(
        self,
        log: logging.Logger,
        *,
        clock: Callable[[], float] = time.monotonic,
        more: str = "and {} more since the last message",
    ) -> None:
        self.log = log
        self._more = more
        self._clock = clock
        self._logged: dict[str, float] = {}
        self._omitted: Counter[str] = Counter()

    def note(
        self,
        kind: str,
        text: str,
        *,
        level: int = logging.WARNING,
        interval_s: float = INTERVAL_S,
        error: BaseException | None = None,
    ) -> None:
        """Log the text, and the traceback of `error`, unless one of its kind was just logged."""
        now = self._clock()
        if now - self._logged.get(kind, -math.inf) < interval_s:
            self._omitted[kind] += 1
            return
        self._logged[kind] = now
        others = self._omitted.pop(kind, 0)
        more = f" ({self._more.format(others)})" if others else ""
        self.log.log(level, "%s%s", text, more, exc_info=error)
