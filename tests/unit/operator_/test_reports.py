"""Windows over reports: of each pod, packed, and of all pods together."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.histogram import LARGEST_BUCKET, LARGEST_SUM, Histogram
from latencyprobe.domain.measurement import (
    COUNTERS_OMITTED,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    total,
)
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.limits import MAX_NODE_STAGES
from latencyprobe_operator.desired_state import PlacedPod
from latencyprobe_operator.observed_state import ReportedProbe, ReportedTarget, TargetStatus
from latencyprobe_operator.probes.intake import ReportIntake
from latencyprobe_operator.probes.windows import MAX_COUNTERS, SLOTS, ProbeWindows, of_one_pod
from tools.fakes.agent import measurement
from tools.fakes.samples import pod as sample_pod
from tools.fakes.samples import probe_spec, target_id

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
    st.dictionaries(st.sampled_from(["retransmits"]), st.integers(0, 9)),
    st.dictionaries(st.sampled_from(["TcpExtListenDrops", "UdpInErrors"]), st.integers(0, 9)),
)


def test_a_pods_window_adds_up_and_forgets() -> None:
    windows = ProbeWindows(10, 60)
    for at in range(0, 60, 10):
        windows.add("a", measurement(1000 + at), at=at)

    assert windows.of_pod("a", at=59).stage("rx.total").histogram.count == 6
    assert windows.of_pod("a", at=75).stage("rx.total").histogram.min_ns == 1020
    assert not windows.of_pod("a", at=200)
    assert not windows.of_pod("b", at=59)


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, SLOTS))
def test_a_window_holds_just_the_reports_of_its_length(times: list[int], length: int) -> None:
    windows = ProbeWindows(1, length)
    for at in sorted(times):
        windows.add("a", Measurement(counters={"retransmits": 1}), at=at)
    now = max(times, default=0)
    young = sum(at > now - length for at in times)

    assert windows.of_pod("a", at=now).counters.get("retransmits", 0) == young
    assert windows.merged(at=now).counters.get("retransmits", 0) == young


def test_containers_of_one_pod_add_up() -> None:
    windows = ProbeWindows(10, 60)
    windows.add("a", measurement(1000), at=1)
    windows.add("a", measurement(2000), at=1.001)

    assert windows.of_pod("a", at=2).stage("rx.total").histogram == Histogram.of([1000, 2000])


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


def test_a_long_window_keeps_no_more_entries_than_slots() -> None:
    windows = ProbeWindows(1, 3600)
    for at in range(7200):
        windows.add("a", measurement(1000), at=at)

    kept = len(windows._pods["a"]._entries)
    assert SLOTS <= kept <= SLOTS * 1.5
    count = windows.of_pod("a", at=7199).stage("rx.total").histogram.count
    assert count == pytest.approx(3600, rel=1 / SLOTS)
    assert windows.merged(at=7199).stage("rx.total").histogram.count == pytest.approx(
        3600, rel=1 / SLOTS
    )


def test_reports_an_interval_apart_stay_apart_though_they_jitter() -> None:
    windows = ProbeWindows(10, 60)
    times = [0.0, 9.8, 20.1, 29.7, 40.2]
    for at in times:
        windows.add("a", measurement(1000), at=at)

    assert len(windows._pods["a"]._entries) == len(times)


def test_the_slowest_pod_comes_first_by_rx_or_else_tx() -> None:
    windows = ProbeWindows(10, 60)
    windows.add("slow", measurement(9_000_000), at=0)
    windows.add("fast", measurement(1_000), at=0)
    windows.add("sender", measurement(50_000, stage="tx.total"), at=0)
    windows.add("both", measurement(70_000) + measurement(9_999_999, stage="tx.total"), at=0)

    order = windows.worst_first(["idle", "fast", "sender", "slow", "both"], at=1)

    assert order == ["slow", "both", "sender", "fast", "idle"]


def test_a_pod_is_no_longer_slow_when_that_has_left_the_window() -> None:
    windows = ProbeWindows(10, 60)
    windows.add("a", measurement(9_000_000), at=0)
    windows.add("a", measurement(1_000), at=50)
    windows.add("b", measurement(2_000), at=50)

    assert windows.worst_first(["a", "b"], at=51) == ["a", "b"]
    # Known for two slots at the latest.
    assert windows.worst_first(["a", "b"], at=81) == ["b", "a"]


def test_a_forgotten_pod_stays_in_the_sum_until_it_leaves_the_window() -> None:
    windows = ProbeWindows(10, 60)
    windows.add("a", measurement(1_000), at=0)
    windows.forget("a")

    assert not windows.of_pod("a", at=1)
    assert windows.merged(at=1).stage("rx.total").histogram.count == 1
    assert not windows.merged(at=61)


def test_a_shorter_window_forgets_at_once() -> None:
    windows = ProbeWindows(10, 60)
    windows.add("a", measurement(1_000), at=0)
    windows.add("a", measurement(1_000), at=30)
    windows.resize(10, 20)

    assert windows.of_pod("a", at=31).stage("rx.total").histogram.count == 1
    assert windows.merged(at=31).stage("rx.total").histogram.count == 1


def test_a_nodes_window_adds_up_and_forgets() -> None:
    windows = ProbeWindows(10, 60)
    for at in range(0, 60, 2):
        stage = measurement(1000 + at).stage("rx.total")
        node = NodeMeasurement({NodeStage("rx.total", "eth0"): stage}, {"softnetDropped": 1})
        windows.add_node("n", node, at=at)

    whole = windows.of_nodes(most=1, at=59)["n"]
    assert whole.counters == {"softnetDropped": 30}
    assert whole.stages[NodeStage("rx.total", "eth0")].histogram.count == 30
    assert len(windows._nodes["n"]._entries) <= SLOTS * 1.5
    assert windows.of_nodes(most=1, at=200) == {}


def test_a_node_without_pods_of_the_probe_is_forgotten() -> None:
    windows = ProbeWindows(10, 60)
    for name in "ab":
        windows.add_node(name, NodeMeasurement(counters={"softnetDropped": 1}), at=0)
    windows.keep_nodes(["b"])

    assert windows.of_nodes(most=9, at=1).keys() == {"b"}


def test_only_the_worst_nodes_stages_are_unpacked_and_all_counters_are_told() -> None:
    windows = ProbeWindows(10, 60)
    for name, drops, slowest_ns in (("quiet", 0, 1), ("slow", 0, 9000), ("drops", 3, 1)):
        stage = measurement(slowest_ns).stage("rx.total")
        node = NodeMeasurement({NodeStage("rx.total"): stage}, {"softnetDropped": drops})
        windows.add_node(name, node, at=0)
    windows.add_node("dropped a little", NodeMeasurement(counters={"softnetDropped": 1}), at=0)

    nodes = windows.of_nodes(most=3, at=1)

    assert {name: node.counters["softnetDropped"] for name, node in nodes.items()} == {
        "quiet": 0,
        "slow": 0,
        "drops": 3,
        "dropped a little": 1,
    }
    assert {name for name, node in nodes.items() if node.stages} == {"drops", "slow"}


node_measurements = st.builds(
    NodeMeasurement,
    st.dictionaries(
        st.builds(NodeStage, st.just("rx.total"), st.sampled_from("ab")), stage_measurements
    ),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 9)),
)


@given(st.lists(st.tuples(st.integers(0, 59), node_measurements), max_size=12))
def test_a_nodes_window_is_the_domains_sum(reports: list[tuple[int, NodeMeasurement]]) -> None:
    windows = ProbeWindows(10, 60)
    expected = NOTHING_OF_THE_NODE
    for at, measured in sorted(reports, key=lambda each: each[0]):
        windows.add_node("n", measured, at=at)
        expected += measured

    ours = windows.of_nodes(most=1, at=59).get("n", NOTHING_OF_THE_NODE)

    assert ours.counters == expected.counters
    assert ours.stages.keys() == expected.stages.keys()
    for key, stage in expected.stages.items():
        assert ours.stages[key].histogram == stage.histogram
        assert ours.stages[key].lost == stage.lost


def test_the_namespaces_of_several_pods_are_not_added_up() -> None:
    windows = ProbeWindows(10, 60)
    for pod in "ab":
        shared = Measurement(netns_counters={"TcpExtListenDrops": 1})
        windows.add(pod, measurement(1) + shared, at=0)

    assert windows.of_pod("a", at=1).netns_counters == {"TcpExtListenDrops": 1}
    assert not windows.merged(at=1).netns_counters


@given(st.lists(st.tuples(st.sampled_from("abc"), measurements)))
def test_the_sum_over_all_pods_is_the_domains_sum(
    reports: list[tuple[str, Measurement]],
) -> None:
    windows = ProbeWindows(10, 60)
    for index, (pod, measured) in enumerate(reports):
        windows.add(pod, measured, at=index / 100)

    expected, merged = total(m for _, m in reports), windows.merged(at=1)

    assert merged.counters == expected.counters
    assert merged.stages.keys() == expected.stages.keys()
    for name, stage in expected.stages.items():
        ours = merged.stages[name]
        assert ours.histogram == stage.histogram
        assert (ours.lost, ours.unmatched) == (stage.lost, stage.unmatched)
        assert ours.sampling_ratio == pytest.approx(stage.sampling_ratio)


def test_more_counters_than_a_message_holds_keep_the_largest() -> None:
    windows = ProbeWindows(10, 60)
    for report in range(8):
        names = [f"{report}-{number}" for number in range(250)]
        drops = {f"drops.{name}": 1 + report for name in names}
        windows.add("a", Measurement(counters=drops, netns_counters=drops), at=report)
        windows.add_node("n", NodeMeasurement(counters=drops), at=report)

    merged, ours = windows.merged(at=8), windows.of_pod("a", at=8)
    (node,) = windows.of_nodes(most=1, at=8).values()
    for counters in (merged.counters, ours.counters, ours.netns_counters, node.counters):
        assert len(counters) == MAX_COUNTERS
        assert all(counters[f"drops.7-{number}"] == 8 for number in range(250))
        assert counters[COUNTERS_OMITTED] >= 250


def test_two_containers_with_different_counters_are_one_pod() -> None:
    one, other = (
        Measurement(counters={f"drops.{each}{number}": 1 for number in range(250)}) for each in "ab"
    )
    windows = ProbeWindows(10, 60)
    windows.add("a", of_one_pod(one, other), at=0)

    assert len(windows.of_pod("a", at=1).counters) == MAX_COUNTERS


def test_a_node_with_ever_new_stages_keeps_those_with_the_most_samples() -> None:
    windows = ProbeWindows(10, 60)
    for report, samples in enumerate((1, 3, 2)):
        stage = measurement(*[1000] * samples).stage("rx.total")
        stages = {NodeStage("rx.total", f"{report}-{n}"): stage for n in range(MAX_NODE_STAGES)}
        windows.add_node("n", NodeMeasurement(stages), at=report)

    (node,) = windows.of_nodes(most=1, at=3).values()
    assert {stage.detail.partition("-")[0] for stage in node.stages} == {"1"}


def test_sums_of_the_largest_reports_fit_into_the_status() -> None:
    largest = 2**53 - 1
    histogram = Histogram({5: largest, 6: largest}, largest, 1, largest)
    stage = StageMeasurement(histogram, largest, largest, largest, 2.0**-16)
    report = Measurement({"rx.total": stage}, {"retransmits": largest}, {"X": largest})
    windows = ProbeWindows(10, 60)
    for at in range(3000):
        windows.add("a", report, at=at / 100)
        windows.add_node(
            "n", NodeMeasurement({NodeStage("rx.total"): stage}, {"softnetDropped": largest}), at=at
        )

    (node,) = windows.of_nodes(most=1, at=30).values()
    ours = windows.of_pod("a", at=30)
    for summed in (windows.merged(at=30), ours):
        whole = summed.stage("rx.total")
        assert summed.counters == {"retransmits": LARGEST_SUM}
        numbers = (whole.lost, whole.unmatched, whole.clamped, whole.histogram.sum_ns)
        assert numbers == (LARGEST_SUM,) * 4
        assert whole.histogram.count == 2 * LARGEST_BUCKET
        assert whole.sampling_ratio > 0
    assert ours.netns_counters == {"X": LARGEST_SUM}
    assert node.counters["softnetDropped"] <= LARGEST_SUM


@given(st.lists(st.tuples(st.sampled_from("abc"), measurements), max_size=20))
def test_the_order_is_by_p99(reports: list[tuple[str, Measurement]]) -> None:
    windows = ProbeWindows(10, 60)
    for index, (pod, measured) in enumerate(reports):
        windows.add(pod, measured, at=index)

    order = windows.worst_first("abc", at=len(reports))

    p99s = [
        windows.of_pod(pod, at=len(reports)).stage("rx.total").histogram.percentile(99)
        for pod in order
    ]
    assert all(one >= other for one, other in pairwise(p99s))


@pytest.mark.parametrize("node_figures", [False, True])
@pytest.mark.parametrize("host_network", [False, True])
def test_figures_of_the_node_are_kept_only_where_they_are_allowed(
    *, node_figures: bool, host_network: bool
) -> None:
    intake = ReportIntake(last_report_time=None, node_figures=node_figures)
    intake.adopt(probe_spec(), None)
    netns = Measurement(netns_counters={"TcpExtListenDrops": 3})
    report = ReportedProbe(
        probe_uid="uid-checkout",
        targets=(
            ReportedTarget(
                id=target_id("a"),
                status=TargetStatus(TargetState.ATTACHED, ""),
                measurement=netns + measurement(1000),
            ),
        ),
        node=NodeMeasurement(counters={"softnetDropped": 5}),
    )
    placed = {"uid-a": PlacedPod(sample_pod("a", host_network=host_network), ())}
    intake.take("node-a", report, placed, at=1.0, wall=1.0)

    kept = intake.windows.of_pod("uid-a", at=1.0)
    assert kept.stage("rx.total") == measurement(1000).stage("rx.total")
    assert bool(kept.netns_counters) == (node_figures or not host_network)
    assert bool(intake.windows.of_nodes(most=8, at=1.0)) == node_figures
