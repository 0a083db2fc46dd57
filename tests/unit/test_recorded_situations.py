"""Verdicts on the recorded evidence of situations, whose truth the recording run knew.

A live run records them: `LATENCYPROBE_RECORD_SITUATIONS=1 pytest tests/live/situations`. Where a
verdict needs more evidence than there is in a file, the situation is to be recorded again.
"""

from __future__ import annotations

import json

import pytest

from latencyprobe.domain.causes import (
    CAUSES,
    GROWN_NETWORK,
    NO_NAME_SERVER,
    UNNAMED_CONTENTION,
    Bottleneck,
)
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import EvidenceLine, Unit
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.domain.verdict import NEXT_STEPS, Verdict
from tests.live.situations.answers import Cause, Grade, answer
from tests.live.situations.catalogue import CATALOGUE, NOT_RIGHT_YET, RIGHT_NOW_AND_THEN
from tests.live.situations.controls import MIXED
from tests.live.situations.recording import FOLDER, Evidence, Recording, decoded, encoded, load
from tests.live.situations.runner import judge
from tests.live.situations.situation import End
from tests.live.situations.table import Row, table


def verdict(bottleneck: Bottleneck, next_step: str = "") -> Verdict:
    return Verdict(bottleneck, 0, ("some figures",), next_step)


IN_WORDS = {
    "all answers take about as long: those of polls that end by a time-out do, too",
    *(
        each.because
        for each in (*CAUSES.values(), GROWN_NETWORK, NO_NAME_SERVER, UNNAMED_CONTENTION)
    ),
}
RECORDED = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_every_situation_is_recorded_and_every_recording_is_of_one() -> None:
    assert set(RECORDED) == set(CATALOGUE)


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("name", RECORDED)
def test_the_verdict_on_recorded_evidence_names_the_cause(name: str, end: End) -> None:
    recording = load(name)
    evidence = recording.of(end)
    reached = judge(evidence)
    grade = CATALOGUE[name].answer(end).grade(reached)
    is_known = (name, end) in NOT_RIGHT_YET
    truth = f"the truth, on {evidence.kernel}: {recording.truth}"
    assert reached.next_step in NEXT_STEPS
    assert (grade is not Grade.RIGHT) is is_known, f"{grade}: {reached}; {truth}"


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("name", RECORDED)
def test_a_program_gets_the_figure_of_each_sentence_with_one(name: str, end: End) -> None:
    reached = judge(load(name).of(end))
    for line in reached.evidence:
        if not isinstance(line, EvidenceLine):
            assert line in IN_WORDS or line.startswith("the longest for "), line
            continue
        is_time = line.unit == Unit.NS
        shown = format_ns(round(line.figure)) if is_time else f"{line.figure:,.0f}"
        assert shown in line, (line, line.figure)


def test_a_situation_that_is_known_not_to_be_right_is_one_of_the_catalogue() -> None:
    assert {name for name, _ in NOT_RIGHT_YET | RIGHT_NOW_AND_THEN} <= {*CATALOGUE, MIXED.name}
    assert not NOT_RIGHT_YET & RIGHT_NOW_AND_THEN


def test_evidence_is_the_same_after_it_was_recorded() -> None:
    stage = StageMeasurement(Histogram.of([5, 700, 80_000]), lost=1, sampling_ratio=0.5)
    evidence = Evidence(
        "6.18.0",
        DEFAULT_MODULES,
        Measurement({"rx.total": stage}, {"rtos": 2}, {"TcpExtTCPTimeouts": 3}),
        NodeMeasurement({NodeStage("irq.hard", "eth0"): stage}, {"softnetDropped": 1}),
    )
    recording = Recording("2 time-outs", {"client": evidence, "server": evidence})
    assert decoded(Recording, json.loads(json.dumps(encoded(recording)))) == recording


def test_a_cause_is_right_half_or_wrong() -> None:
    expected = answer(Cause.NETWORK, half=[Cause.PEER], says="queu(e|ing)")
    assert expected.grade(verdict(Bottleneck.NETWORK, "A queue grows.")) is Grade.RIGHT
    assert expected.grade(verdict(Bottleneck.NETWORK, "It is far.")) is Grade.HALF
    assert expected.grade(verdict(Bottleneck.PEER)) is Grade.HALF
    assert expected.grade(verdict(Bottleneck.NONE)) is Grade.WRONG


def test_the_table_counts_its_grades() -> None:
    rows = [
        Row("loss", "client", "5 of 100 lost", "Peer 99%", Grade.WRONG, "Measure the peer."),
        Row("loss", "server", "5 of 100 lost", "PacketLoss 90%", Grade.RIGHT, "Check the path."),
    ]
    shown = table(rows)
    assert shown.count("5 of 100 lost") == 1
    assert shown.endswith("1 right, 0 half, 1 wrong")
