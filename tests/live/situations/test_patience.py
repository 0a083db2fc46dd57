"""Answers that are missing, and those that are not due yet: what is pending, from both ends.

The truth is that of the situations' own programs: see `witness`. What was seen of a situation for
its verdicts serves here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from latencyprobe.domain.patience import (
    FIRST_ANSWERS,
    FIRST_REQUESTS,
    MISSING_ANSWERS,
    STUCK_REQUESTS,
)
from latencyprobe.domain.pending import Pending
from tests.live.situations.catalogue import CATALOGUE
from tests.live.situations.runner import NotMadeError, Observed, Outcome, observe
from tests.live.situations.situation import End, Facts

JUDGED = frozenset({MISSING_ANSWERS, STUCK_REQUESTS, FIRST_ANSWERS, FIRST_REQUESTS})


def pending(outcome: Outcome, end: End) -> Mapping[str, Pending]:
    return outcome.evidence[end].measurement.pending or {}


def judged(outcome: Outcome, end: End) -> dict[str, int]:
    """The requests that something is said of, by kind."""
    found = pending(outcome, end)
    return {kind: found[kind].count for kind in found if kind in JUDGED}


def peers(outcome: Outcome) -> list[tuple[str, str, int]]:
    found = outcome.evidence[End.CLIENT].measurement.peers
    return [(str(each.address), each.kind, each.count) for each in found]


def all_answered_within_a_second(facts: Facts) -> bool:
    """Sooner than anything is said of a request: a machine that rests delays answers, too."""
    figures = facts["client"]
    is_all = figures["count"] > 0 and not figures["failed"] and not figures["pending"]
    return is_all and figures["max_ms"] < 1000


@pytest.fixture
async def idle_pool(observed: Observed, object_cache: Path) -> Outcome:
    """A pool in which no answer was late: that of the verdicts, or another one."""
    with suppress(NotMadeError):
        outcome = await observed("idle_pool")
        if all_answered_within_a_second(outcome.facts):
            return outcome
    prompt = replace(CATALOGUE["idle_pool"], was_made=all_answered_within_a_second)
    return await observe(prompt, object_cache)


# Their records are judged in tests/unit/test_recorded_situations.py.
thorough = pytest.mark.thorough


def assert_nothing_is_said(outcome: Outcome) -> None:
    assert (judged(outcome, End.CLIENT), judged(outcome, End.SERVER)) == ({}, {})
    assert peers(outcome) == []


@thorough
@pytest.mark.parametrize("name", ["long_poll_of_30_s", "redis_subscribe"])
async def test_waiting_without_harm_is_neither_missing_nor_stuck(
    name: str, observed: Observed
) -> None:
    assert_nothing_is_said(await observed(name))


def test_an_idle_pool_is_neither_missing_nor_stuck(idle_pool: Outcome) -> None:
    assert_nothing_is_said(idle_pool)


@thorough
async def test_a_hung_worker_is_shown_by_the_answers_of_the_others(observed: Observed) -> None:
    outcome = await observed("one_of_four_workers_hung")
    waiting = outcome.facts["client"]["pending"]
    assert judged(outcome, End.CLIENT) == {MISSING_ANSWERS: waiting}
    assert judged(outcome, End.SERVER) == {}
    assert pending(outcome, End.SERVER)["unacceptedConnections"].count == waiting
    (peer,) = peers(outcome)
    assert peer[1:] == (MISSING_ANSWERS, waiting)
    assert peer[0].endswith(":7000")


@pytest.mark.parametrize(
    ("name", "at_the_server"),
    [
        ("reader_that_never_reads", "unreadSegments"),
        pytest.param(
            *("silent_connection_has_the_only_worker", "unacceptedConnections"), marks=thorough
        ),
    ],
)
async def test_a_peer_without_any_answer_is_named_and_not_judged(
    name: str, at_the_server: str, observed: Observed
) -> None:
    """A client that halted for 1 ms between two of its writes may have asked twice: no claim."""
    outcome = await observed(name)
    waiting = outcome.facts["client"]["pending"]
    claimed = judged(outcome, End.CLIENT)
    assert claimed.keys() == {FIRST_ANSWERS}
    assert waiting / 4 <= claimed[FIRST_ANSWERS] <= waiting
    assert judged(outcome, End.SERVER) == {}
    assert pending(outcome, End.SERVER)[at_the_server].sockets == waiting
    assert [peer[1:] for peer in peers(outcome)] == [(FIRST_ANSWERS, claimed[FIRST_ANSWERS])]
