"""The governor: from a figure of CPU time to how many packets are looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.governor import MAX_SHIFT, next_shift, strictest


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
    assert next_shift(shift, cpu_percent, 1.0) == expected


def test_without_a_budget_every_packet_counts() -> None:
    assert next_shift(5, 50.0, 0.0) == 0


@given(st.floats(0.001, 400), st.floats(0.1, 100))
def test_settles_where_cost_goes_with_the_packets(full_cost: float, budget: float) -> None:
    shift, seen = 0, []
    for _ in range(40):
        shift = next_shift(shift, full_cost / 2**shift, budget)
        seen.append(shift)
    assert len(set(seen[-5:])) == 1
    assert full_cost / 2**shift <= budget or shift == MAX_SHIFT
