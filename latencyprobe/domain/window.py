"""A sliding window over measurements, by the time they were received.

Holds one measurement per interval and forgets the ones that have wholly left the window; a query
adds up what is left. Times are seconds of any monotonic clock that the caller uses throughout.
"""

from __future__ import annotations

from collections import deque

from latencyprobe.domain.measurement import Measurement, total


class SlidingWindow:
    """The measurements of the last `length_seconds`."""

    def __init__(self, length_seconds: float) -> None:
        self._length = _above_0(length_seconds)
        self._entries: deque[tuple[float, Measurement]] = deque()

    def add(self, measurement: Measurement, *, at: float) -> None:
        """Take in what was measured up to `at`."""
        if measurement:
            self._entries.append((at, measurement))
        self._forget(at)

    def resize(self, length_seconds: float, *, at: float) -> None:
        """Change the length; what no longer fits is forgotten."""
        self._length = _above_0(length_seconds)
        self._forget(at)

    def measurement(self, *, at: float) -> Measurement:
        """The sum of what is in the window."""
        self._forget(at)
        return total(measurement for _, measurement in self._entries)

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0][0] <= now - self._length:
            self._entries.popleft()


def _above_0(length_seconds: float) -> float:
    if length_seconds <= 0:
        raise ValueError(f"window of {length_seconds} s: must be above 0")
    return length_seconds
