"""Base-2 exponential histograms of durations, schema 3.

Bucket `i` of the exponential scale holds the durations in (2**((i-1)/8), 2**(i/8)] seconds: eight
buckets an octave, upper bound inclusive. Prometheus' native histogram (schema 3) has the same
buckets by the same index, OpenTelemetry's exponential histogram (scale 3) by the index before it.
Both count in seconds, so the bounds are round there, and not in nanoseconds.

We keep 240 buckets, from 65 ns to 69.8 s. An underflow bucket comes before them, an overflow bucket
after them. A *position* is an index into that row of 242. The kernel counts by position, and gRPC
carries positions. Histograms merge by addition.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from latencyprobe.domain.lanes import LARGEST_COUNT, Lanes

SCHEMA = 3
BUCKETS_PER_OCTAVE = 1 << SCHEMA
FIRST_OCTAVE = 6
LAST_OCTAVE = 36
UNDERFLOW = 0
OVERFLOW = (LAST_OCTAVE - FIRST_OCTAVE) * BUCKETS_PER_OCTAVE + 1
POSITIONS = OVERFLOW + 1
# Sums end here, so that any number of reports add up to a signed 64-bit number: of durations or
# events, and of the samples in one bucket of a histogram.
LARGEST_SUM = 2**63 - 1
LARGEST_BUCKET = LARGEST_COUNT
# The bucket on the exponential scale of a position: position 1 is the bucket -190.
FIRST_BUCKET = -190


def _nanoseconds(eighths: int, scale: int = 0) -> int:
    """Return floor(2**(scale + eighths/8) * 10**9), exact: by integer square roots."""
    exponent = 8 * scale + eighths
    power = 10**72 << exponent if exponent >= 0 else 10**72 >> -exponent
    return math.isqrt(math.isqrt(math.isqrt(power)))


# Octaves are of nanoseconds: the kernel finds one by a duration's highest bit. A duration
# normalised to 64 bits is above the bound j of its octave iff it is above threshold j: these are
# the eight bounds between 2**63 and 2**64.
MANTISSA_THRESHOLDS: tuple[int, ...] = tuple(
    _nanoseconds(FIRST_BUCKET - 1 + j, 63 - FIRST_OCTAVE) for j in range(BUCKETS_PER_OCTAVE)
)
# The longest durations of the underflow bucket and of the last one before the overflow.
LOWEST_NS = _nanoseconds(FIRST_BUCKET - 1)
HIGHEST_NS = _nanoseconds(FIRST_BUCKET - 1 + OVERFLOW - 1)


def position_of(duration_ns: int) -> int:
    """Return the position that counts a duration, as `bpf/include/histogram.h` does."""
    if duration_ns <= LOWEST_NS:
        return UNDERFLOW
    if duration_ns > HIGHEST_NS:
        return OVERFLOW
    octave = duration_ns.bit_length() - 1
    mantissa = duration_ns << (63 - octave)
    above = sum(mantissa > threshold for threshold in MANTISSA_THRESHOLDS)
    return (octave - FIRST_OCTAVE) * BUCKETS_PER_OCTAVE + above


def bounds_of(position: int) -> tuple[float, float]:
    """Return the (exclusive lower, inclusive upper) bound of a position, in nanoseconds."""
    return _BOUNDS[position]


def _bound(position: int) -> float:
    seconds: float = 2.0 ** ((FIRST_BUCKET - 1 + position) / BUCKETS_PER_OCTAVE)
    return 1e9 * seconds


_UPPERS = (*map(_bound, range(OVERFLOW)), math.inf)
_BOUNDS = tuple(zip((0.0, *_UPPERS[:-1]), _UPPERS, strict=True))


@dataclass(frozen=True, slots=True)
class Histogram:
    """A set of durations: sparse counts by position, with their exact sum, minimum and maximum.

    `min_ns` and `max_ns` are 0 if `count` is 0. Raises ValueError if the parts are inconsistent: a
    histogram may have come over the network.
    """

    buckets: Mapping[int, int] = field(default_factory=dict)
    sum_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.buckets, Lanes):
            # Made by this process alone.
            count = self.buckets.total
        else:
            count = _checked_count(self.buckets)
        if self.min_ns > self.max_ns or min(self.min_ns, self.sum_ns) < 0:
            raise ValueError(
                f"inconsistent sum {self.sum_ns}, min {self.min_ns} and max {self.max_ns}"
            )
        object.__setattr__(self, "count", count)

    @classmethod
    def of(cls, durations_ns: Iterable[int]) -> Histogram:
        """Return the histogram of these durations."""
        values = list(durations_ns)
        if not values:
            return EMPTY
        buckets: dict[int, int] = {}
        for value in values:
            position = position_of(value)
            buckets[position] = buckets.get(position, 0) + 1
        return cls(buckets, sum(values), min(values), max(values))

    def __add__(self, other: Histogram) -> Histogram:
        if not self.count:
            return other
        if not other.count:
            return self
        return Histogram(
            Lanes.of(self.buckets) + Lanes.of(other.buckets),
            min(self.sum_ns + other.sum_ns, LARGEST_SUM),
            min(self.min_ns, other.min_ns),
            max(self.max_ns, other.max_ns),
        )

    @property
    def mean_ns(self) -> int:
        """The exact mean, rounded; 0 without samples."""
        return round(self.sum_ns / self.count) if self.count else 0

    def sum_up_to(self, limit_ns: int) -> int:
        """Return the sum of the durations, of which each counts as `limit_ns` at most.

        By the upper bounds of the buckets, but never more than the exact sum.
        """
        if limit_ns <= 0 or limit_ns >= self.max_ns:
            return self.sum_ns if limit_ns > 0 else 0
        uppers = _UPPERS
        sums = [
            n * limit_ns if uppers[at] > limit_ns else round(n * uppers[at])
            for at, n in zip(*self._in_order(), strict=True)
        ]
        return min(sum(sums), self.sum_ns)

    def below(self, limit_ns: int) -> tuple[int, int]:
        """Return how many durations are below the limit, and their sum.

        By the upper bounds of the buckets, but never more than the exact sum.
        """
        bounds = ((n, _UPPERS[at]) for at, n in zip(*self._in_order(), strict=True))
        short = [(n, upper) for n, upper in bounds if upper <= limit_ns]
        sum_ns = round(sum(n * upper for n, upper in short))
        return sum(n for n, _ in short), min(sum_ns, self.sum_ns)

    def sum_of_shortest(self, count: int) -> int:
        """Return the sum of so many durations, the shortest; never more than the exact sum.

        By the upper bounds of the buckets.
        """
        if count <= 0:
            return 0
        left, sum_ns = count, 0.0
        for position, inside in zip(*self._in_order(), strict=True):
            upper_ns = min(_UPPERS[position], self.max_ns)
            taken = min(left, inside)
            sum_ns += taken * upper_ns
            left -= taken
        return min(round(sum_ns), self.sum_ns)

    def percentile(self, percent: float) -> int:
        """Return the duration that `percent` of the samples do not exceed, in nanoseconds.

        Interpolates geometrically inside the bucket, and stays in it and between the exact minimum
        and maximum. Returns 0 without samples. Raises ValueError outside 0 to 100.
        """
        return self.percentiles(percent)[0]

    def percentiles(self, *percents: float) -> list[int]:
        """Return several percentiles: puts the buckets in order once."""
        for percent in percents:
            if not 0 <= percent <= 100:
                raise ValueError(f"invalid percentile {percent}: it must be between 0 and 100")
        if not self.count:
            return [0] * len(percents)
        positions, counts = self._in_order()
        # The number of samples up to each position, without a loop of Python.
        ends = list(accumulate(counts))
        found = []
        for percent in percents:
            rank = percent * self.count / 100
            index = bisect_left(ends, rank)
            if index == len(ends):
                found.append(self.max_ns)
                continue
            seen = ends[index] - counts[index]
            fraction = max(rank - seen, 0) / counts[index]
            found.append(self._interpolate(positions[index], fraction))
        return found

    def _in_order(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return positions and their counts in order; counts between others may be 0."""
        if isinstance(self.buckets, Lanes):
            row = self.buckets.row
            return range(self.buckets.first, self.buckets.first + len(row)), row
        positions = sorted(self.buckets)
        return positions, [self.buckets[position] for position in positions]

    def _interpolate(self, position: int, fraction: float) -> int:
        lower, upper = bounds_of(position)
        shortest = self.min_ns if position == UNDERFLOW else max(math.floor(lower) + 1, self.min_ns)
        longest = self.max_ns if position == OVERFLOW else min(math.floor(upper), self.max_ns)
        start = max(shortest, 1)
        if longest <= start:
            return longest
        value: float = start * (longest / start) ** fraction
        return min(max(round(value), shortest), longest)


def _checked_count(buckets: Mapping[int, int]) -> int:
    """Return the number of samples in these buckets; raise ValueError if one is impossible."""
    counts = buckets.values()
    # Without a loop of Python: some thousand histograms are made for one report of a node.
    if buckets and (min(buckets) < 0 or max(buckets) >= POSITIONS or min(counts) <= 0):
        position, count = next(
            (position, count)
            for position, count in buckets.items()
            if not 0 <= position < POSITIONS or count <= 0
        )
        raise ValueError(
            f"invalid bucket {position} with count {count}: positions are 0 to "
            f"{POSITIONS - 1}, counts are positive"
        )
    return sum(counts)


EMPTY = Histogram()
