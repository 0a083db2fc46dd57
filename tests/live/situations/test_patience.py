"""Answers that are missing, and those that are not due yet: what is pending, from both ends.

The truth is that of the situations' own programs: see `witness`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from tests.live.situations.runner import Outcome, observe
from tests.live.situations.situation import End, Facts, Situation

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


IDLE_POOL = replace(CATALOGUE["idle_pool"], was_made=all_answered_within_a_second)
# Their records are judged in tests/unit/test_recorded_situations.py.
thorough = pytest.mark.thorough


@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(CATALOGUE["long_poll_of_30_s"], marks=thorough, id="long_poll_of_30_s"),
        pytest.param(CATALOGUE["redis_subscribe"], marks=thorough, id="redis_subscribe"),
        pytest.param(IDLE_POOL, id="idle_pool"),
    ],
)
async def test_waiting_without_harm_is_neither_missing_nor_stuck(
    situation: Situation, object_cache: Path
) -> None:
    outcome = await observe(situation, object_cache)
    assert (judged(outcome, End.CLIENT), judged(outcome, End.SERVER)) == ({}, {})
    assert peers(outcome) == []


@thorough
async def test_a_hung_worker_is_shown_by_the_answers_of_the_others(object_cache: Path) -> None:
    outcome = await observe(CATALOGUE["one_of_four_workers_hung"], object_cache)
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
    name: str, at_the_server: str, object_cache: Path
) -> None:
    outcome = await observe(CATALOGUE[name], object_cache)
    waiting = outcome.facts["client"]["pending"]
    assert judged(outcome, End.CLIENT) == {FIRST_ANSWERS: waiting}
    assert judged(outcome, End.SERVER) == {}
    assert pending(outcome, End.SERVER)[at_the_server].sockets == waiting
    assert [peer[1:] for peer in peers(outcome)] == [(FIRST_ANSWERS, waiting)]
