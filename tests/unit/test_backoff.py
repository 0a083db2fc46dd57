"""Delays between attempts: they grow, stay bounded, differ, and begin again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.process.backoff import Backoff


@given(st.floats(0.001, 10), st.floats(0.001, 1000), st.integers(1, 2000))
def test_each_delay_lies_in_the_upper_half_of_a_doubling_limit(
    first_s: float, longest_s: float, attempts: int
) -> None:
    backoff = Backoff(first_s, longest_s)
    most_s = min(first_s, longest_s)
    for _ in range(attempts):
        assert most_s / 2 <= backoff.next() <= most_s
        most_s = min(most_s * 2, longest_s)


def test_two_that_begin_together_do_not_stay_together() -> None:
    one, other = Backoff(1, 60), Backoff(1, 60)

    assert [one.next() for _ in range(8)] != [other.next() for _ in range(8)]


def test_after_a_success_the_first_delay_returns() -> None:
    backoff = Backoff(0.25, 15)
    for _ in range(20):
        assert backoff.next() > 0
    backoff.reset()

    assert backoff.next() == pytest.approx(0.1875, abs=0.0625)
