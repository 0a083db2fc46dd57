"""The governor: from a figure of CPU time to how many packets are looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.budget import MAX_SHIFT, strictest
from latencyprobe_agent.sampling import PATIENCE, Sampling


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [([], 0), ([0, 0], 0), ([1], 1), ([5, 0, 2], 2)],
)
def test_the_strictest_budget_holds_and_0_is_no_budget(
    budgets: list[float], expected: float
) -> None:
    assert strictest(budgets) == expected


@pytest.mark.parametrize(
    ("shift", "cpu_percent", "expected"),
    [
        (0, 0.9, 0),
        (0, 1.1, 1),
        (0, 2.9, 2),
        (3, 8.0, 6),
        (0, 100_000, MAX_SHIFT),
        (3, 0.5, 3),
        (3, 0.3, 2),
        (0, 0.0, 0),
    ],
)
def test_up_at_once_and_down_by_one(shift: int, cpu_percent: float, expected: int) -> None:
    assert Sampling(shift).after(cpu_percent, 1.0).shift == expected


@pytest.mark.parametrize(("shift", "expected"), [(0, 2), (2, 2), (5, 2)])
def test_sampling_never_goes_below_the_floor(shift: int, expected: int) -> None:
    assert Sampling(shift).after(1000.0, 1.0, max_shift=2).shift == expected


def test_without_a_budget_every_packet_counts() -> None:
    assert Sampling(5).after(50.0, 0.0) == Sampling()


@given(st.floats(0.001, 60), st.floats(1, 100))
def test_settles_where_cost_goes_with_the_packets(full_cost: float, budget: float) -> None:
    sampling, seen = Sampling(), []
    for _ in range(40):
        sampling = sampling.after(full_cost / 2**sampling.shift, budget)
        seen.append(sampling.shift)
    assert len(set(seen[-5:])) == 1
    assert full_cost / 2**sampling.shift <= budget


def test_a_raise_that_does_not_help_is_taken_back_for_a_while() -> None:
    """The cost is that of other pods' packets: looking at fewer of ours would change nothing."""
    sampling = Sampling().after(8.0, 1.0)
    assert sampling.shift == 3
    sampling = sampling.after(7.5, 1.0)
    assert sampling.shift == 0
    for _ in range(PATIENCE):
        sampling = sampling.after(8.0, 1.0)
        assert sampling.shift == 0
    assert sampling.after(8.0, 1.0).shift == 3


def test_a_raise_that_helps_is_kept_and_followed_by_another() -> None:
    sampling = Sampling().after(4.0, 1.0)
    assert sampling.after(2.0, 1.0).shift == sampling.shift + 1
