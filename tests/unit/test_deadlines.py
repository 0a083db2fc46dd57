"""Tests wait for a condition for ten times the usual, and longer where the machine is slow."""

from __future__ import annotations

import pytest

from tests.patience import VARIABLE
from tests.unit.agent import running
from tests.unit.operator_ import waiting


@pytest.fixture(params=[("0.001", "0.03"), ("0.002", "0.06")], ids=["patience 1", "patience 2"])
def deadline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The deadline of a wait, in thousandths of the usual, as its message has it."""
    patience, seconds = request.param
    monkeypatch.setenv(VARIABLE, patience)
    return str(seconds)


async def test_a_wait_for_an_agent_has_a_deadline_by_the_machine(deadline: str) -> None:
    with pytest.raises(AssertionError, match=f"not within {deadline} s: a reading"):
        await running.until(lambda: False, "a reading")


async def test_a_wait_for_the_operator_has_a_deadline_by_the_machine(deadline: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"not within {deadline} s; last seen: Pending"):
        await waiting.until(lambda: False, what=lambda: "Pending")
