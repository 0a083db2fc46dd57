"""Situations happen once for both ends; the table of their verdicts closes the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.live.situations.recording import Recording, save
from tests.live.situations.runner import Observed, Outcome, observe
from tests.live.situations.situation import CATALOGUE, End
from tests.live.situations.table import Row, table

# A run with this variable writes what it measured to tests/unit/recorded_situations.
RECORD = "LATENCYPROBE_RECORD_SITUATIONS"
_ROWS = pytest.StashKey[list[Row]]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the table of all situations that happened."""
    if rows := config.stash.get(_ROWS, []):
        terminalreporter.section("situations")
        terminalreporter.write_line(table(rows))


@pytest.fixture
def rows(pytestconfig: pytest.Config) -> list[Row]:
    """The table's rows so far."""
    return pytestconfig.stash.setdefault(_ROWS, [])


@pytest.fixture(scope="session")
def observed(object_cache: Path) -> Observed:
    """Has a situation happen, or returns what was seen when it did; once for each `time`."""
    seen: dict[tuple[str, int], Outcome] = {}

    async def outcome_of(name: str, time: int = 1) -> Outcome:
        if (name, time) not in seen:
            outcome = seen[name, time] = await observe(CATALOGUE[name], object_cache)
            if os.environ.get(RECORD) and time == 1:
                evidence = {str(end): outcome.evidence[end] for end in End}
                save(name, Recording(outcome.truth, evidence))
        return seen[name, time]

    return outcome_of
