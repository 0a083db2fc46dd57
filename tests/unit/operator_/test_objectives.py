"""Objectives are missed when they have been exceeded for long enough, without a break."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_operator.api.spec import NamedObjective
from latencyprobe_operator.probes.objectives import ObjectiveOutcome, ObjectivesWatch, exceeded_in
from latencyprobe_operator.probes.status import build
from tests.unit.operator_.status_facts import NOW, SPEC, facts
from tools.fakes.agent import measurement

READS = NamedObjective("reads", Objective("rx.total", 99, 5_000_000), 60)
FAST, SLOW = measurement(*[1_000_000] * 200), measurement(*[9_000_000] * 200)


def test_it_is_missed_after_its_time_and_met_again_at_once() -> None:
    watch = ObjectivesWatch()
    seen = [
        watch.judge([READS], measured, at=at)[0].outcome
        for at, measured in [(0, FAST), (10, SLOW), (60, SLOW), (70, SLOW), (80, FAST), (90, SLOW)]
    ]

    assert seen == [
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MISSED,
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MET,
    ]


def test_one_that_an_earlier_operator_has_found_missed_is_missed_until_it_is_met() -> None:
    watch = ObjectivesWatch({"reads": math.inf})
    seen = [
        watch.judge([READS], measured, at=at)[0].outcome
        for at, measured in [(0, NOTHING), (10, SLOW), (20, SLOW), (30, FAST), (40, SLOW)]
    ]

    assert seen == [
        ObjectiveOutcome.UNKNOWN,
        ObjectiveOutcome.MISSED,
        ObjectiveOutcome.MISSED,
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MET,
    ]


def test_the_message_has_the_figures() -> None:
    (judgement,) = ObjectivesWatch().judge([READS], SLOW, at=0)

    assert judgement.message == (
        "reads: p99 of rx.total is 9ms, at most 5ms (exceeded for 0 s of 60 s)"
    )


def test_too_few_samples_say_nothing_and_end_the_time() -> None:
    watch = ObjectivesWatch()
    watch.judge([READS], SLOW, at=0)
    (unknown,) = watch.judge([READS], NOTHING, at=30)
    (again,) = watch.judge([READS], SLOW, at=80)

    assert unknown.outcome is ObjectiveOutcome.UNKNOWN
    assert again.outcome is ObjectiveOutcome.MET


def test_an_objective_that_was_missed_counts_again_after_it_was_unknown_for_as_long() -> None:
    watch = ObjectivesWatch({"reads": math.inf})
    outcomes = [
        judgement.outcome
        for at, measured in [(0, NOTHING), (60, NOTHING), (70, SLOW), (130, SLOW)]
        for judgement in watch.judge([READS], measured, at=at)
    ]
    assert outcomes == [
        ObjectiveOutcome.UNKNOWN,
        ObjectiveOutcome.UNKNOWN,
        ObjectiveOutcome.MET,
        ObjectiveOutcome.MISSED,
    ]


def status(met: str, message: str) -> dict[str, object]:
    """A status with this condition."""
    return {"conditions": [{"type": "ObjectivesMet", "status": met, "message": message}]}


def test_the_time_of_an_exceeded_objective_goes_on_from_a_status() -> None:
    before = ObjectivesWatch()
    before.judge([READS], SLOW, at=0)
    (judgement,) = before.judge([READS], SLOW, at=40.9)
    exceeded = exceeded_in(status("True", f"writes: met; {judgement.message}"))
    assert exceeded == {"reads": 40}

    watch = ObjectivesWatch(exceeded)
    outcomes = [watch.judge([READS], SLOW, at=at)[0].outcome for at in (1000, 1019, 1020)]
    assert outcomes == [ObjectiveOutcome.MET, ObjectiveOutcome.MET, ObjectiveOutcome.MISSED]

    watch = ObjectivesWatch(exceeded)
    outcomes = [
        watch.judge([READS], measured, at=at)[0].outcome
        for at, measured in [(1000, FAST), (1010, SLOW), (1030, SLOW)]
    ]
    assert outcomes == [ObjectiveOutcome.MET] * 3, "it was met between"


LAST = "the-last-one"


@pytest.mark.parametrize("others", [FAST, NOTHING], ids=["met", "unknown"])
def test_the_time_of_an_exceeded_objective_is_in_the_status_with_many_others(
    others: Measurement,
) -> None:
    watch = ObjectivesWatch({LAST: 40.0})
    judgements = [
        judgement
        for name in (*(f"objective-{number}" for number in range(11)), LAST)
        for judgement in watch.judge(
            [replace(READS, name=name)], SLOW if name == LAST else others, at=0
        )
    ]
    spec = replace(SPEC, objectives=(READS,))
    document = build(facts(spec=spec, objectives=judgements), now=NOW)

    (message,) = (
        each["message"] for each in document["conditions"] if each["type"] == "ObjectivesMet"
    )
    assert message.endswith("…")
    assert exceeded_in(document) == {LAST: 40}


@pytest.mark.parametrize(
    ("met", "message", "exceeded"),
    [
        ("False", "reads: p99 of rx.total is 9ms, at most 5ms", {"reads": math.inf}),
        ("True", "reads: p99 of rx.total is 9ms (exceeded, but for less than 60 s)", {}),
        ("True", "reads: p99 of rx.total is 9ms (exceeded for -5 s of 60 s)", {}),
        ("True", f"reads: 9ms (exceeded for {'9' * 400} s of 60 s)", {"reads": math.inf}),
        ("Unknown", "reads: 9ms (exceeded for 5 s of 60 s)", {"reads": 5}),
        ("Unknown", "reads: p99 of rx.total: 3 samples, 100 are needed", {}),
        ("True", "", {}),
    ],
)
def test_only_the_times_that_a_status_states_go_on(
    met: str, message: str, exceeded: dict[str, float]
) -> None:
    assert exceeded_in(status(met, message)) == exceeded
