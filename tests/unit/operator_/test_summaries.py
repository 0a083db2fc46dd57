"""The nodes' newest summaries of one probe: their sum, their pods, and how long they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, Histogram
from latencyprobe.domain.measurement import (
    COUNTERS_OMITTED,
    MAX_NODE_STAGES,
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    of_one_pod,
    total,
)
from latencyprobe.domain.report import report_on
from latencyprobe.domain.score import SCORE_VERSION
from latencyprobe.domain.stages import CGROUP_COUNTERS, DEFAULT_MODULES
from latencyprobe.domain.summary import PodReport, PodScore, ProbeSummary
from latencyprobe_operator.observed_state import ReportedProbe, ReportSource, Span
from latencyprobe_operator.probes.summaries import NodeSummaries
from latencyprobe_operator.probes.sums import MAX_COUNTERS, RunningSum
from tools.fakes.agent import measurement

stage_measurements = st.builds(
    StageMeasurement,
    st.lists(st.integers(0, 2**37), max_size=10).map(Histogram.of),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([1.0, 0.5, 0.25]),
)
measurements = st.builds(
    Measurement,
    st.dictionaries(st.sampled_from(["rx.total", "rx.socket", "tcp.rtt"]), stage_measurements),
    st.dictionaries(st.sampled_from(["retransmits", *CGROUP_COUNTERS]), st.integers(0, 9)),
    st.dictionaries(st.sampled_from(["TcpExtListenDrops", "UdpInErrors"]), st.integers(0, 9)),
)
WINDOW_S, INTERVAL_S = 60.0, 10.0


def take(
    summaries: NodeSummaries,
    node: str,
    merged: Measurement = NOTHING,
    *,
    at: float = 0.0,
    of_node: NodeMeasurement = NOTHING_OF_THE_NODE,
    span: Span | None = None,
    stream: int = 1,
    keeps_window: bool = True,
    pods: Sequence[PodReport] = (),
    **parts: Any,
) -> None:
    """Take in a summary of a node, with these parts; of the interval after the last one."""
    if span is None:
        known = summaries._nodes.get(node)
        begin = known.end if known else 0.0
        span = Span(begin, begin + INTERVAL_S)
    summary = ProbeSummary(merged=merged, **parts)
    report = ReportedProbe(
        probe_uid="p",
        summary=summary,
        node=of_node,
        pods=tuple(pods),
        span=span,
        source=ReportSource("i", stream),
    )
    summaries.take(node, report, summary, at=at, window_s=WINDOW_S, keeps_window=keeps_window)


def pod(uid: str, score: int = 0) -> PodReport:
    """A pod in full."""
    return PodReport(uid, uid, (), score, report_on(Measurement(), DEFAULT_MODULES))


def scores(summaries: NodeSummaries) -> list[PodScore]:
    """The scores that can be compared."""
    return [each.place for part in summaries.scores() for each in part]


def forget(
    summaries: NodeSummaries, *current: str, at: float, interval_s: float = INTERVAL_S
) -> None:
    """Forget what is over at this time; these nodes run pods of the probe."""
    summaries.forget(current, at=at, window_s=WINDOW_S, interval_s=interval_s)


@given(st.lists(st.tuples(st.sampled_from("abc"), measurements)))
def test_the_sum_is_the_domains_sum_of_the_newest_summary_of_each_node(
    reports: list[tuple[str, Measurement]],
) -> None:
    summaries = NodeSummaries()
    for node, measured in reports:
        take(summaries, node, measured)

    expected, merged = total(dict(reports).values()), summaries.merged()

    assert merged.counters == expected.counters
    assert merged.stages.keys() == expected.stages.keys()
    for name, stage in expected.stages.items():
        ours = merged.stages[name]
        assert ours.histogram == stage.histogram
        assert (ours.lost, ours.unmatched, ours.clamped) == (
            stage.lost,
            stage.unmatched,
            stage.clamped,
        )
        assert ours.sampling_ratio == pytest.approx(stage.sampling_ratio)


def test_network_namespaces_of_several_nodes_are_not_added_up() -> None:
    summaries = NodeSummaries()
    for node in "ab":
        take(summaries, node, Measurement(netns_counters={"TcpExtListenDrops": 1}))

    assert not summaries.merged().netns_counters


@pytest.mark.parametrize(("interval_s", "counts_s"), [(10.0, WINDOW_S), (60.0, 150.0)])
def test_a_node_without_reports_counts_until_its_last_window_has_passed(
    interval_s: float, counts_s: float
) -> None:
    """But with a window of one interval, until a report is lost and the next one is late."""
    summaries = NodeSummaries()
    take(summaries, "late", measurement(1000), at=0)
    forget(summaries, "late", at=counts_s, interval_s=interval_s)
    assert summaries.merged()

    forget(summaries, "late", at=counts_s + 1, interval_s=interval_s)
    assert not summaries.merged()


def test_a_node_that_no_pod_runs_on_counts_until_its_last_window_has_passed() -> None:
    summaries = NodeSummaries()
    take(summaries, "left", measurement(1000), at=0, verdicts={"None": 3}, pods=[pod("a")])
    forget(summaries, "other", at=WINDOW_S)
    assert summaries.merged()
    assert [each.pod.pod_uid for each in summaries.in_full()] == ["a"]
    assert summaries.measured == 3

    forget(summaries, "other", at=WINDOW_S + 1)
    assert not summaries.merged()
    assert list(summaries.in_full()) == []
    assert summaries.measured == 0


def test_the_causes_that_pods_name_add_up_over_nodes() -> None:
    summaries = NodeSummaries()
    late = {"Peer": 5, "DNS": 7}
    of_b = {"Peer": 1, "Drops": 1, "InsufficientData": 4}
    for _ in range(2):
        take(summaries, "a", verdicts={"Peer": 2, "None": 9}, waiting_ns=late)
        take(summaries, "b", verdicts=of_b, waiting_ns=late)
        take(summaries, "c", verdicts={"None": 3}, waiting_ns=late)
    assert summaries.accused() == {Bottleneck.PEER: (3, 10), Bottleneck.DROPS: (1, 0)}

    for _ in range(2):
        take(summaries, "a", verdicts={"None": 11})
    assert summaries.accused() == {Bottleneck.PEER: (1, 5), Bottleneck.DROPS: (1, 0)}


def test_the_distance_to_peers_is_no_accusation() -> None:
    summaries = NodeSummaries()
    for _ in range(2):
        take(summaries, "a", verdicts={"Network": 3})
        take(summaries, "b", verdicts={"Network": 1}, waiting_ns={"Network": 9})
    assert summaries.accused() == {Bottleneck.NETWORK: (1, 9)}


def test_a_cause_of_one_report_alone_is_neither_taken_in_nor_left_out() -> None:
    summaries = NodeSummaries()
    named = []
    for verdicts in ("Peer", "None", "DNS", "Peer", "Peer", "None", "Peer", "None", "None", "Peer"):
        take(summaries, "a", verdicts={verdicts: 2}, waiting_ns={"Peer": 5, "DNS": 1})
        named.append("".join(summaries.accused()))
    assert named == ["", "", "", "", "Peer", "Peer", "Peer", "Peer", "", ""]


def test_a_report_that_is_sent_again_makes_no_cause_last() -> None:
    """An agent sends its newest report with each stream, so that no figures are lost."""
    summaries = NodeSummaries()
    named = []
    ends = (("Peer", 10), ("Peer", 10), ("Peer", 20), ("None", 30), ("None", 30), ("None", 40))
    for stream, (verdict, end) in enumerate(ends):
        span, waiting_ns = Span(end - INTERVAL_S, end), {"Peer": 5}
        take(summaries, "a", span=span, stream=stream, verdicts={verdict: 2}, waiting_ns=waiting_ns)
        named.append("".join(summaries.accused()))
    assert named == ["", "", "Peer", "Peer", "Peer", ""]


def test_each_report_of_an_older_agent_counts_though_it_has_no_time() -> None:
    summaries = NodeSummaries()
    for _ in range(2):
        take(summaries, "a", span=Span(), keeps_window=False, verdicts={"Peer": 2})
    assert summaries.accused() == {Bottleneck.PEER: (2, 0)}


def test_a_node_without_pods_accuses_nothing() -> None:
    summaries = NodeSummaries(accused_before=("Peer",))
    take(summaries, "a", verdicts={"Peer": 2}, waiting_ns={"Peer": 5})
    assert summaries.accused()
    take(summaries, "a", verdicts={})
    assert not summaries.accused()


def test_a_summary_replaces_the_pods_of_the_one_before() -> None:
    summaries = NodeSummaries()
    take(summaries, "n", pods=[pod("a"), pod("b")], verdicts={"None": 2})
    take(summaries, "n", pods=[pod("b")], verdicts={"None": 1})

    assert [each.pod.pod_uid for each in summaries.in_full()] == ["b"]
    assert summaries.lacks("n", "a")
    assert not summaries.lacks("n", "b")
    assert not summaries.lacks("elsewhere", "a")


def test_more_pods_belong_to_the_summary_of_their_time() -> None:
    summaries = NodeSummaries()
    scores = tuple(PodScore(1, uid) for uid in ("a", "b", "old"))
    take(summaries, "n", pods=[pod("a")], scores=scores, span=Span(10, 20))
    parts = (("b", Span(10, 20)), ("old", Span(0, 10)), ("without score", Span(10, 20)))
    for uid, span in parts:
        summaries.take_more("n", ReportedProbe(probe_uid="p", pods=(pod(uid),), span=span))
    summaries.take_more("unknown", ReportedProbe(probe_uid="p", pods=(pod("a"),)))

    assert [each.pod.pod_uid for each in summaries.in_full()] == ["a", "b"]


def test_scores_of_another_version_are_not_compared_and_the_rest_is_kept() -> None:
    summaries = NodeSummaries()
    take(
        summaries,
        "n",
        measurement(1000),
        scores=(PodScore(9, "a"), PodScore(8, "b")),
        pods=[pod("a", 9)],
        score_version=SCORE_VERSION + 1,
    )

    # By this operator's own function: the pod has no data.
    assert scores(summaries) == [PodScore(0, "a")]
    assert [each.pod.place for each in summaries.in_full()] == [PodScore(0, "a")]
    assert summaries.merged().stage("rx.total").histogram.count == 1
    assert f"scores of version {SCORE_VERSION + 1}" in summaries.skew_of("n")
    take(summaries, "n", scores=(PodScore(9, "a"),))
    assert summaries.skew_of("n") == ""
    assert scores(summaries) == [PodScore(9, "a")]


def test_only_the_worst_nodes_stages_are_unpacked_and_all_counters_are_reported() -> None:
    summaries = NodeSummaries()
    for name, drops, slowest_ns in (("quiet", 0, 1), ("slow", 0, 9000), ("drops", 3, 1)):
        stage = measurement(slowest_ns).stage("rx.total")
        node = NodeMeasurement({NodeStage("rx.total"): stage}, {"softnetDropped": drops})
        take(summaries, name, of_node=node)
    take(summaries, "dropped a little", of_node=NodeMeasurement(counters={"softnetDropped": 1}))

    nodes = summaries.of_nodes(most=3)

    assert {name: node.counters["softnetDropped"] for name, node in nodes.items()} == {
        "quiet": 0,
        "slow": 0,
        "drops": 3,
        "dropped a little": 1,
    }
    assert {name for name, node in nodes.items() if node.stages} == {"drops", "slow"}
    take(summaries, "drops")
    assert "drops" not in summaries.of_nodes(most=3)


def test_a_node_with_too_many_stages_keeps_those_with_the_most_samples() -> None:
    summaries = NodeSummaries()
    few, many = (measurement(*[1000] * n).stage("rx.total") for n in (1, 2))
    stages = {NodeStage("rx.total", f"few-{n}"): few for n in range(9)}
    stages |= {NodeStage("rx.total", f"many-{n}"): many for n in range(MAX_NODE_STAGES)}
    take(summaries, "n", of_node=NodeMeasurement(stages))

    (node,) = summaries.of_nodes(most=1).values()
    assert len(node.stages) == MAX_NODE_STAGES
    assert {stage.detail.partition("-")[0] for stage in node.stages} == {"many"}


def test_more_counters_than_a_message_holds_keep_the_largest() -> None:
    summaries = NodeSummaries()
    for report in range(8):
        names = [f"{report}-{number}" for number in range(250)]
        drops = {f"drops.{name}": 1 + report for name in names}
        node = NodeMeasurement(counters=drops)
        take(summaries, f"node-{report}", Measurement(counters=drops), of_node=node)

    merged = summaries.merged()
    assert len(merged.counters) == MAX_COUNTERS
    assert all(merged.counters[f"drops.7-{number}"] == 8 for number in range(250))
    assert merged.counters[COUNTERS_OMITTED] >= 250


def test_sums_of_the_largest_reports_fit_into_the_status() -> None:
    largest = 2**53 - 1
    histogram = Histogram({5: largest, 6: largest}, largest, 1, largest)
    stage = StageMeasurement(histogram, largest, largest, largest, 2.0**-16)
    summaries = NodeSummaries()
    for node in range(3000):
        take(summaries, str(node), Measurement({"rx.total": stage}, {"retransmits": largest}))

    merged = summaries.merged()
    whole = merged.stage("rx.total")
    assert merged.counters == {"retransmits": LARGEST_SUM}
    numbers = (whole.lost, whole.unmatched, whole.clamped, whole.histogram.sum_ns)
    assert numbers == (LARGEST_SUM,) * 4
    assert whole.histogram.count == 2 * LARGEST_BUCKET
    assert whole.sampling_ratio > 0


def test_containers_below_one_quota_are_not_throttled_twice() -> None:
    quota = {"cpuThrottledNs": 700, "cpuThrottledPeriods": 2, "cpuPeriods": 5}
    server = Measurement(counters={**quota, "cpuPressureNs": 40, "rtos": 1})
    sidecar = Measurement(counters={**quota, "cpuPressureNs": 90, "rtos": 2})
    assert of_one_pod(server, sidecar).counters == {**quota, "cpuPressureNs": 90, "rtos": 3}


def test_the_account_of_a_quota_is_that_of_one_container() -> None:
    server = Measurement(counters={"cpuThrottledNs": 700, "cpuThrottledPeriods": 2})
    sidecar = Measurement(counters={"cpuThrottledNs": 90, "cpuThrottledPeriods": 9, "rtos": 4})
    together = {"cpuThrottledNs": 700, "cpuThrottledPeriods": 2, "rtos": 4}
    assert of_one_pod(server, sidecar).counters == together
    assert total([server, sidecar]).counters["cpuThrottledNs"] == 790


@given(measurements, measurements, measurements)
def test_containers_of_a_pod_are_added_up_in_any_order(
    a: Measurement, b: Measurement, c: Measurement
) -> None:
    for one, other in (
        (of_one_pod(a, b), of_one_pod(b, a)),
        (of_one_pod(of_one_pod(a, b), c), of_one_pod(a, of_one_pod(b, c))),
    ):
        assert (one.counters, one.netns_counters) == (other.counters, other.netns_counters)
        assert one.stages.keys() == other.stages.keys()
        for name, stage in one.stages.items():
            assert stage.histogram == other.stages[name].histogram
    assert of_one_pod(a, a).netns_counters == a.netns_counters


def test_adding_up_many_nodes_is_done_in_steps() -> None:
    summaries = NodeSummaries()
    for node in range(200):
        take(summaries, str(node), measurement(1000))
    running = RunningSum()
    counts = [
        running.value().stage("rx.total").histogram.count for _ in summaries.adding_up(running)
    ]

    assert counts == sorted(counts)
    assert max(b - a for a, b in pairwise([0, *counts, 200])) <= 50
