"""Lines of a log that something repeats: one in an interval, with the number of the others."""

from __future__ import annotations

import logging

import pytest

from latencyprobe.process.repeated_lines import INTERVAL_S, RepeatedLines

LOG = logging.getLogger("repeated")


def test_one_line_of_each_kind_in_an_interval_counts_those_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [5.0]
    lines = RepeatedLines(LOG, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for number in range(100):
            lines.note("accept", f"cannot accept {number}")
        lines.note("page", "cannot make", level=logging.ERROR, error=ValueError("why"))
        now[0] += INTERVAL_S
        lines.note("accept", "cannot accept again")
        lines.note("accept", "not yet")
        now[0] += 1
        lines.note("accept", "more often", interval_s=1)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "cannot accept 0"),
        ("ERROR", "cannot make"),
        ("WARNING", "cannot accept again (and 99 more since the last message)"),
        ("WARNING", "more often (and 1 more since the last message)"),
    ]
    assert "ValueError: why" in caplog.text
