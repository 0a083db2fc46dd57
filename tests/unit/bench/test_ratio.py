"""Medians, quartiles and paired slices of the benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from bench.ratio import Spread, paired


def test_a_spread_has_the_median_the_quartiles_and_the_extremes() -> None:
    spread = Spread.of([5, 1, 2, 4, 3])
    assert (spread.median, spread.lower, spread.upper) == (3, 2, 4)
    assert (spread.least, spread.most) == (1, 5)
    assert str(spread) == "3.00  (2.00 to 4.00)"
    assert spread.text(0) == "3  (2 to 4)"


def test_one_value_is_its_own_median_and_quartiles() -> None:
    assert Spread.of([0.5]).document() == dict.fromkeys(
        ("median", "lower", "upper", "least", "most"), 0.5
    )


def test_quartiles_lie_between_values() -> None:
    assert Spread.of([1, 2, 3, 4]).text(2) == "2.50  (1.75 to 3.25)"


class Machine:
    """A machine that becomes slower with each slice, and has arms that cost."""

    def __init__(self) -> None:
        self.speed = 100.0
        self.active = ""
        self.order: list[str] = []

    @asynccontextmanager
    async def arm(self, name: str) -> AsyncIterator[None]:
        self.active = name
        yield
        self.active = ""

    def rate(self) -> float:
        self.order.append(self.active)
        self.speed -= 1
        return self.speed * {"": 1, "dear": 0.5, "free": 1}[self.active]


async def test_a_machine_that_drifts_changes_no_ratio_of_neighbouring_slices() -> None:
    machine, steps = Machine(), list[None]()
    arms = {name: partial(machine.arm, name) for name in ("dear", "free")}
    found = await paired(arms, machine.rate, 3, lambda: steps.append(None))
    assert found.ratios["dear"] == pytest.approx([0.5] * 3)
    assert found.ratios["free"] == pytest.approx([1] * 3)
    assert machine.order == ["", *["dear", "", "free", ""] * 3]
    assert len(found.unprobed) == 7
    assert len(steps) == 6
