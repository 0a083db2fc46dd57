"""Verdicts on situations of a known truth, from both ends; `-k NAME` runs one of them.

Each has a truth that the programs' own clocks and the kernel's counters tell. The run closes with
the table of all verdicts. What is not right yet is listed in `catalogue`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.situations.answers import Grade
from tests.live.situations.catalogue import CATALOGUE, NOT_RIGHT_YET, RIGHT_NOW_AND_THEN
from tests.live.situations.controls import MIXED
from tests.live.situations.runner import NotMadeError, Observed, Outcome, observe_windows
from tests.live.situations.situation import End
from tests.live.situations.table import Row

WINDOWS = 50
# Of five times.
MOST = 3
# In each run: loss, a reader that hangs, a drop of the node, the accept queue, a quota, health.
ALWAYS = frozenset(
    {
        "loss_of_2_5_percent",
        "reader_that_never_reads",
        "dns_query_dropped_on_the_node",
        "accept_loop_of_20_ms_with_backlog_1",
        "cpu_quota",
        "idle_pool",
    }
)
NAMES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.thorough) for name in CATALOGUE
]


def row_of(outcome: Outcome, end: End) -> Row:
    verdict = outcome.verdict(end)
    named = f"{verdict.bottleneck} {verdict.share_percent}%"
    grade = outcome.situation.answer(end).grade(verdict)
    return Row(outcome.situation.name, end, outcome.truth, named, grade, verdict.next_step)


def hold_to_lists(row: Row) -> None:
    """A row is right, or one of those that are known not to be."""
    key = (row.situation, End(row.end))
    if row.grade is Grade.RIGHT:
        assert key not in NOT_RIGHT_YET, f"{key} is right now: take it off NOT_RIGHT_YET"
    else:
        said = f"{row.grade}: {row.verdict}, {row.next_step}; the truth: {row.truth}"
        assert key in NOT_RIGHT_YET, said


async def of_most_times(name: str, end: End, observed: Observed, wrong: Row) -> Row:
    """Have it happen again, until it was right or not right `MOST` times; returns the last row."""
    rows = [wrong]
    while True:
        print(f"again, after {rows[-1].grade}: {rows[-1]}")
        rows.append(row_of(await observed(name, len(rows) + 1), end))
        right = [row for row in rows if row.grade is Grade.RIGHT]
        if MOST in (len(right), len(rows) - len(right)):
            return (right if len(right) == MOST else [wrong])[-1]


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("name", NAMES)
async def test_the_verdict_names_the_cause_from_either_end(
    name: str, end: End, observed: Observed, rows: list[Row]
) -> None:
    try:
        row = row_of(await observed(name), end)
        if row.grade is not Grade.RIGHT and (name, end) in RIGHT_NOW_AND_THEN:
            row = await of_most_times(name, end, observed, row)
    except NotMadeError as error:
        if not CATALOGUE[name].is_control:
            raise
        pytest.skip(f"the load's own clocks saw something slow: {error.facts['client']}")
    rows.append(row)
    hold_to_lists(row)


@pytest.mark.thorough
@pytest.mark.timeout(600)
async def test_windows_of_mixed_healthy_load_are_never_accused(
    object_cache: Path, rows: list[Row]
) -> None:
    """Windows in which the load's own clocks saw something slow do not count."""
    windows = [
        window
        async for window in observe_windows(MIXED, WINDOWS, object_cache)
        if MIXED.was_made(window.facts)
    ]
    truth = f"{len(windows)} of {WINDOWS} windows were fast by the load's own clocks"
    of_both = []
    for end in End if windows else ():
        seen = [row_of(window, end) for window in windows]
        accused = [row for row in seen if row.grade is not Grade.RIGHT]
        verdict = f"{len(accused)} accused" + "".join(f", {row.verdict}" for row in accused[:1])
        grade = Grade.WRONG if accused else Grade.RIGHT
        of_both.append(Row(MIXED.name, end, truth, verdict, grade, (accused or seen)[0].next_step))
    if not of_both:
        pytest.skip(truth)
    rows += of_both
    for row in of_both:
        hold_to_lists(row)
