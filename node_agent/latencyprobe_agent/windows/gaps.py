"""Gaps: the time in which a probe's pods were not measured, although they were to be."""

from __future__ import annotations

from collections import deque

# Each gap takes a compilation or a lapse of the lease. Beyond this number the oldest are dropped.
_MOST_GAPS = 1024


class Gaps:
    """The gaps of one probe. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, float]] = deque(maxlen=_MOST_GAPS)
        self._since: float | None = None

    def begin(self, at: float) -> None:
        """Begin a gap; one that is open goes on."""
        if self._since is None:
            self._since = at

    def end(self, at: float) -> None:
        """End the open gap, if any."""
        if self._since is not None:
            self._ended.append((self._since, at))
            self._since = None

    def within(self, begin: float, end: float) -> float:
        """Return the length of the gaps between two times."""
        gaps = (*self._ended, *(() if self._since is None else ((self._since, end),)))
        return sum((max(min(end, until) - max(begin, since), 0.0) for since, until in gaps), 0.0)

    def forget(self, before: float) -> None:
        """Forget the gaps that ended before this time."""
        while self._ended and self._ended[0][1] <= before:
            self._ended.popleft()
