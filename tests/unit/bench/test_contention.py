"""What our programs cost when two CPUs count, from rates with and without them."""

from __future__ import annotations

import pytest

from bench.contention import APART, TOGETHER, Rates, _outcome


def rates(unprobed_us: float, apart_us: float, together_us: float) -> Rates:
    """Of two CPUs whose requests take so long."""
    return Rates(*(2e6 / each for each in (unprobed_us, apart_us, together_us)))


def test_the_cost_is_the_time_beyond_that_without_programs() -> None:
    costs = rates(10, 12, 12.5).costs_ns
    assert costs == pytest.approx({TOGETHER: 2500, APART: 2000})


def test_a_round_in_which_others_ran_does_not_decide_the_ratio() -> None:
    found = [rates(10, 12, 12.4), rates(10, 12, 12.4), rates(20, 12, 12.4)]
    document = _outcome(found, foreign=0).document
    assert document["ratio"]["median"] == pytest.approx(1.2)
    assert not document["ratio"]["met"]
    assert document["ratio_of_the_whole_time"]["median"] == pytest.approx(12.4 / 12, abs=1e-4)
