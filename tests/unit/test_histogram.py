"""The histogram against numpy, and its bucket bounds against exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import (
    EMPTY,
    HIGHEST_NS,
    LOWEST_NS,
    OVERFLOW,
    POSITIONS,
    UNDERFLOW,
    Histogram,
    bounds_of,
    position_of,
)

durations = st.one_of(
    st.integers(0, 2**40),
    # Around the bounds, where an off-by-one would hide.
    st.builds(
        lambda position, offset: round(1e9 * 2 ** ((position - 191) / 8)) + offset,
        st.integers(0, POSITIONS + 8),
        st.integers(-2, 2),
    ),
)
histograms = st.lists(durations, max_size=30).map(Histogram.of)


def exact_position(duration_ns: int) -> int:
    """By definition: d seconds are in (2**((i-1)/8), 2**(i/8)] iff 2**(i-1) < d**8 <= 2**i."""
    if duration_ns <= LOWEST_NS:
        return UNDERFLOW
    if duration_ns > HIGHEST_NS:
        return OVERFLOW
    shift = 2 * POSITIONS  # makes whole numbers of all powers
    eighth = (-(-((duration_ns**8) << shift) // 10**72) - 1).bit_length() - shift
    return eighth + 191


@given(st.lists(durations, max_size=30), durations)
def test_a_sum_with_a_limit_is_that_of_the_shorter_ones_and_the_limits(
    durations_ns: list[int], limit_ns: int
) -> None:
    exact_ns = sum(min(each, limit_ns) for each in durations_ns)
    measured_ns = Histogram.of(durations_ns).sum_up_to(limit_ns)
    in_underflow = LOWEST_NS * len(durations_ns)
    assert exact_ns <= measured_ns + len(durations_ns)
    assert measured_ns <= min(exact_ns * 2 ** (1 / 8) + in_underflow, sum(durations_ns)) + 30
    assert Histogram.of(durations_ns).sum_up_to(2**62) == sum(durations_ns)


@given(st.lists(durations, max_size=50), st.integers(LOWEST_NS, 10**12))
def test_durations_below_a_limit_are_those_of_the_buckets_below_it(
    durations_ns: list[int], limit_ns: int
) -> None:
    count, sum_ns = Histogram.of(durations_ns).below(limit_ns)
    short = sorted(each for each in durations_ns if each <= limit_ns)
    clearly_short = [
        each
        for each in short
        if each * 2 ** (1 / 8) < limit_ns - 2 * LOWEST_NS and each <= HIGHEST_NS
    ]
    assert len(clearly_short) <= count <= len(short)
    assert sum_ns <= sum(durations_ns)
    assert sum(short[:count]) <= sum_ns + count


@given(st.lists(durations, min_size=1, max_size=50), st.integers(0, 60))
def test_the_shortest_durations_add_up_by_their_buckets(
    durations_ns: list[int], count: int
) -> None:
    exact_ns = sum(sorted(durations_ns)[:count])
    measured_ns = Histogram.of(durations_ns).sum_of_shortest(count)
    assert exact_ns <= measured_ns + len(durations_ns)
    assert measured_ns <= sum(durations_ns)
    if max(durations_ns) <= HIGHEST_NS:
        assert measured_ns <= exact_ns * 2 ** (1 / 8) + count * (LOWEST_NS + 1)


@given(durations)
def test_a_duration_is_counted_in_the_bucket_whose_exact_bounds_hold_it(duration_ns: int) -> None:
    assert position_of(duration_ns) == exact_position(duration_ns)


@pytest.mark.parametrize("position", range(1, OVERFLOW))
def test_the_longest_duration_of_a_bucket_is_in_it_and_the_next_one_is_not(position: int) -> None:
    longest = longest_ns(position)
    assert position_of(longest) == position
    assert position_of(longest + 1) == position + 1


@pytest.mark.parametrize("seconds", [2**exponent for exponent in range(7)])
def test_bounds_are_whole_powers_of_two_of_a_second(seconds: int) -> None:
    assert position_of(seconds * 10**9) + 1 == position_of(seconds * 10**9 + 1)


def longest_ns(position: int) -> int:
    return int_eighth_root((10**72 << position) >> 191)


def int_eighth_root(value: int) -> int:
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**8 <= value else (low, middle - 1)
    return low


@given(durations)
def test_the_bounds_of_a_position_hold_the_durations_counted_there(duration_ns: int) -> None:
    lower, upper = bounds_of(position_of(duration_ns))
    assert lower * (1 - 1e-12) <= duration_ns <= upper * (1 + 1e-12)


def test_the_bounds_leave_no_gap() -> None:
    for position in range(POSITIONS - 1):
        assert bounds_of(position)[1] == pytest.approx(bounds_of(position + 1)[0], rel=1e-12)


LONGEST_NS = np.array(
    [
        LOWEST_NS,
        *(longest_ns(position) for position in range(1, OVERFLOW)),
    ]
)


@given(st.lists(durations, max_size=200))
def test_each_bucket_holds_as_many_as_numpy_finds_between_its_bounds(values: list[int]) -> None:
    positions = np.searchsorted(LONGEST_NS, np.array(values, dtype=np.int64), side="left")
    truth = np.bincount(positions, minlength=POSITIONS)
    buckets = Histogram.of(values).buckets
    assert [buckets.get(position, 0) for position in range(POSITIONS)] == truth.tolist()


@given(st.lists(st.lists(durations, min_size=1, max_size=40), min_size=1, max_size=5))
def test_percentiles_of_merged_histograms_lie_in_the_bucket_of_numpys(
    groups: list[list[int]],
) -> None:
    merged = sum(map(Histogram.of, groups), EMPTY)
    values = np.array([value for group in groups for value in group])
    for percent in (50, 90, 99):
        truth = int(np.percentile(values, percent, method="inverted_cdf"))
        assert position_of(merged.percentile(percent)) == position_of(truth)


@given(st.lists(durations, min_size=1, max_size=200), st.integers(0, 1000))
def test_a_percentile_lies_in_the_bucket_of_numpys(values: list[int], per_mille: int) -> None:
    percent = per_mille / 10
    truth = int(np.percentile(np.array(values), percent, method="inverted_cdf"))
    ours = Histogram.of(values).percentile(percent)
    assert position_of(ours) == position_of(truth)
    assert min(values) <= ours <= max(values)


@given(histograms, st.lists(st.floats(0, 100), max_size=5))
def test_percentiles_in_one_pass_are_those_of_each(
    histogram: Histogram, percents: list[float]
) -> None:
    each = [histogram.percentile(percent) for percent in percents]
    assert histogram.percentiles(*percents) == each


@given(histograms, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_never_fall_as_the_percent_rises(
    histogram: Histogram, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert histogram.percentile(low) <= histogram.percentile(high) <= histogram.max_ns


def test_a_rank_that_is_a_whole_number_does_not_slip_into_the_next_bucket() -> None:
    """7 / 100 * 100 is above 7 in floating point."""
    histogram = Histogram.of([100] * 7 + [1_000_000] * 93)
    assert position_of(histogram.percentile(7)) == position_of(100)


@given(histograms, histograms, histograms)
def test_merging_is_associative_and_commutative(a: Histogram, b: Histogram, c: Histogram) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + EMPTY == EMPTY + a == a


@given(st.lists(st.lists(durations, max_size=20), max_size=5))
def test_merged_histograms_are_the_histogram_of_all_values(groups: list[list[int]]) -> None:
    values = [value for group in groups for value in group]
    assert sum(map(Histogram.of, groups), EMPTY) == Histogram.of(values)


@given(st.lists(durations, min_size=1))
def test_count_sum_minimum_maximum_and_mean_are_exact(values: list[int]) -> None:
    histogram = Histogram.of(values)
    assert histogram.count == len(values)
    assert (histogram.sum_ns, histogram.min_ns, histogram.max_ns) == (
        sum(values),
        min(values),
        max(values),
    )
    assert histogram.mean_ns == pytest.approx(np.mean(values), abs=0.5, rel=1e-12)


def test_an_empty_histogram_answers_0() -> None:
    assert (EMPTY.count, EMPTY.mean_ns, EMPTY.percentile(99)) == (0, 0, 0)


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_a_percentile_outside_of_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 100"):
        EMPTY.percentile(percent)


@pytest.mark.parametrize(
    ("buckets", "sum_ns", "min_ns", "max_ns"),
    [
        ({-1: 1}, 1, 1, 1),
        ({POSITIONS: 1}, 1, 1, 1),
        ({3: 0}, 0, 0, 0),
        ({3: -1}, 0, 0, 0),
        ({3: 1}, 80, 90, 80),
        ({3: 1}, -1, 0, 80),
        ({3: 1}, 80, -1, 80),
    ],
)
def test_parts_that_contradict_each_other_are_refused(
    buckets: dict[int, int], sum_ns: int, min_ns: int, max_ns: int
) -> None:
    with pytest.raises(ValueError, match=r"positions are|inconsistent"):
        Histogram(buckets, sum_ns, min_ns, max_ns)
