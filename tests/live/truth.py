"""What a test knows by its own clock of the durations that it caused.

They begin and end at moments in the kernel, and the test reads its clock before and after each of
them. How far apart those readings are depends on how busy the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from latencyprobe.domain.histogram import Histogram

BUCKET = 2 ** (1 / 8)  # one bucket of the histogram


@dataclass(frozen=True, slots=True)
class Moment:
    """Something happened between two readings of the monotonic clock, in nanoseconds."""

    not_before_ns: int
    not_after_ns: int

    @classmethod
    def of(cls, *actions: Callable[[], object]) -> Moment:
        """The moment at which these actions have their effect."""
        before_ns = time.monotonic_ns()
        for action in actions:
            action()
        return cls(before_ns, time.monotonic_ns())


class Durations:
    """The truth about a stage."""

    def __init__(self) -> None:
        self._at_least_ns: list[int] = []
        self._at_most_ns: list[int] = []

    def add(self, began: Moment, ended: Moment) -> None:
        """One more."""
        self._at_least_ns.append(max(0, ended.not_before_ns - began.not_after_ns))
        self._at_most_ns.append(ended.not_after_ns - began.not_before_ns)

    def assert_are_in(self, histogram: Histogram) -> None:
        """As many samples, and the sum, p50 and p99 within a bucket."""
        least, most = Histogram.of(self._at_least_ns), Histogram.of(self._at_most_ns)
        assert histogram.count == most.count
        assert least.sum_ns / BUCKET <= histogram.sum_ns <= most.sum_ns * BUCKET
        for percent in (50, 99):
            shortest, longest = least.percentile(percent), most.percentile(percent)
            assert shortest / BUCKET <= histogram.percentile(percent) <= longest * BUCKET
