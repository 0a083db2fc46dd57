"""Windows hold what was measured in their time: no more, no less, and at any time exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.fairness import MAX_SUMMARISED_PODS, MAX_TARGETS
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
    total,
)
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import report_on
from latencyprobe.domain.slots import SLOTS, slot_length_s
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import PodChoice, PodReport
from latencyprobe.domain.waits import TOTALS
from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.desired import (
    NOTHING_DESIRED,
    ContainerSelector,
    Desired,
    DesiredProbe,
    DesiredTarget,
    DesiredWindow,
    PidSelector,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import PodTargets
from latencyprobe_agent.windows import by_probe, early_figures, packing, probe_window, running
from latencyprobe_agent.windows.by_probe import Windows
from latencyprobe_agent.windows.node_window import WindowOfNode
from latencyprobe_agent.windows.probe_window import WindowReport
from latencyprobe_agent.windows.running import RunningWindow
from tests.unit.agent.scripted import samples

EVERYTHING = SocketFilter()
ALL_MODULES = frozenset(Module)
SMALL = st.integers(0, 9)

stage_measurements = st.builds(
    StageMeasurement,
    st.lists(st.integers(0, 2**37), max_size=6).map(Histogram.of),
    SMALL,
    SMALL,
    SMALL,
    st.sampled_from([1.0, 0.5, 0.3]),
)
measurements = st.builds(
    Measurement,
    st.dictionaries(st.sampled_from(["rx.total", "tx.total", "tcp.rtt"]), stage_measurements),
    st.dictionaries(st.sampled_from(["rtos", "retransmits", "drops.X"]), SMALL),
    st.dictionaries(st.sampled_from(["TcpExtListenDrops", "UdpInErrors"]), SMALL),
)


def _is_same(one: Measurement, other: Measurement) -> bool:
    """Compare exactly, apart from counters of 0, and the rounding of sampling ratios."""
    assert one.stages.keys() == other.stages.keys()
    for name, measured in one.stages.items():
        ratio = other.stages[name].sampling_ratio
        assert measured.sampling_ratio == pytest.approx(ratio)
        assert replace(measured, sampling_ratio=ratio) == other.stages[name]
    for mine, others in (
        (one.counters, other.counters),
        (one.netns_counters, other.netns_counters),
    ):
        counted = [{name: n for name, n in each.items() if n} for each in (mine, others)]
        assert counted[0] == counted[1]
    return True


@given(st.lists(st.tuples(st.booleans(), measurements), max_size=12), st.integers(1, 4))
def test_a_running_sum_is_always_the_sum_of_the_entries_in_the_window(
    steps: list[tuple[bool, Measurement]], slots: int
) -> None:
    window, held, slot = RunningWindow(), list[tuple[int, Measurement]](), 0
    for is_next, measurement in steps:
        slot += is_next
        window.advance(measurement, slot=slot, oldest=slot - slots + 1)
        held = [each for each in (*held, (slot, measurement)) if each[0] > slot - slots]
        assert _is_same(window.value(), total(each for _, each in held))
    window.advance(NOTHING, slot=slot + slots, oldest=slot + 1)
    assert window.is_empty
    assert window.value() == NOTHING


def test_a_running_sum_keeps_the_largest_counters_and_forgets_exactly_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "MAX_COUNTERS", 3)
    window = RunningWindow()
    many = Measurement(counters={"rtos": 9, "retransmits": 8, "drops.A": 2, "drops.B": 1})
    window.advance(many, slot=0, oldest=0)
    window.advance(Measurement(counters={"drops.C": 7}), slot=0, oldest=0)
    window.advance(Measurement(counters={"rtos": 1}), slot=1, oldest=0)
    assert window.value().counters["rtos"] == 10
    window.advance(NOTHING, slot=2, oldest=1)
    assert window.value().counters == {"rtos": 1}


# One probe


def _at(seconds: float) -> Moment:
    return Moment(seconds, round(seconds * 1e9))


def _probe(
    *uids: str,
    interval_s: float = 10,
    window_s: float = 60,
    max_pods: int = 20,
    modules: frozenset[Module] = ALL_MODULES,
    socket_filter: SocketFilter = EVERYTHING,
) -> DesiredProbe:
    return DesiredProbe(
        "p",
        "shop/p",
        modules,
        socket_filter,
        interval_s,
        0.0,
        tuple(DesiredTarget(f"{uid}/c", ContainerSelector(uid, "c"), uid) for uid in uids),
        node_figures=True,
        window=DesiredWindow(window_s, max_pods, PodChoice(max_pods)),
    )


class Measured:
    """The windows of one agent with one probe, on a clock that the test turns."""

    def __init__(self, probe: DesiredProbe, at: float = 0) -> None:
        self.windows = Windows()
        self.probe = probe
        self.now = at
        self._since = at
        self.follow(probe)

    def follow(
        self,
        *probes: DesiredProbe,
        active: frozenset[Module] = ALL_MODULES,
        asked: float | None = None,
        pods: Sequence[PodTargets] | None = None,
        departed: Mapping[DesiredTarget, Measurement] | None = None,
    ) -> None:
        """Put these probes in force, with all their pods measured."""
        for probe in probes:
            self.probe = probe
        found = pods
        if found is None:
            uids = dict.fromkeys(
                target.selector.pod_uid
                for target in self.probe.targets
                if isinstance(target.selector, ContainerSelector)
            )
            found = [PodTargets(uid, f"pod-{uid}", ("c",), True, False) for uid in uids]
        self.windows.follow(
            Desired(1, probes),
            {probe.id: found for probe in probes},
            active,
            {"p": departed or {}},
            asked=_at(self.now if asked is None else asked),
            now=_at(self.now),
        )

    def interval(
        self,
        figures: Mapping[str, Measurement] | None = None,
        *,
        node: NodeMeasurement | None = None,
        seconds: float | None = None,
    ) -> None:
        """Let an interval pass, with these figures by pod."""
        begin, self.now = self._since, self.now + (seconds or self.probe.interval_s)
        self._since = self.now
        taken = ProbeFigures(
            self.probe,
            _at(begin),
            _at(self.now),
            {f"{uid}/c": measurement for uid, measurement in (figures or {}).items()},
            node or NodeMeasurement(),
        )
        self.windows.add([taken])

    @property
    def report(self) -> WindowReport:
        report = self.windows.take("p", ())
        assert report is not None
        return report

    @property
    def pods(self) -> dict[str, PodReport]:
        return {pod.pod_uid: pod for pod in self.report.pods}

    @property
    def samples(self) -> int:
        """The number of packets in the merged window."""
        return self.report.summary.merged.stage("rx.total").histogram.count


def test_a_summary_has_the_whole_window_and_the_newest_interval() -> None:
    measured = Measured(_probe("a", "b"))
    for number in range(1, 9):
        measured.interval({"a": samples(*[100] * number), "b": samples(200)})
    report = measured.report
    assert (report.begin, report.end) == (_at(70), _at(80))
    assert measured.pods["a"].report.stages[0].count == 3 + 4 + 5 + 6 + 7 + 8
    assert measured.samples == 3 + 4 + 5 + 6 + 7 + 8 + 6
    assert report.summary.verdicts == {"InsufficientData": 2}
    assert report.summary.pods == 2


@pytest.mark.parametrize(
    ("max_ns", "bottleneck"),
    [(10**9, Bottleneck.NONE), (10**6, Bottleneck.SLOW_READER)],
    ids=["met", "missed"],
)
def test_the_objectives_of_a_probe_decide_its_verdicts_from_the_next_interval_on(
    max_ns: int, bottleneck: Bottleneck
) -> None:
    late = samples(*[20_000_000] * 200) + samples(*[20_000_000] * 200, stage="rx.socket")
    measured = Measured(_probe("a"))
    measured.interval({"a": late})
    objective = Objective("rx.total", 99, max_ns)
    measured.follow(replace(measured.probe, objectives=(objective,)))
    measured.interval({"a": late})
    assert measured.pods["a"].report.verdict.bottleneck is bottleneck
    assert measured.pods["a"].report.stages[0].count == 400


def test_an_interval_that_is_a_little_late_does_not_lengthen_the_window() -> None:
    measured = Measured(_probe("a"))
    for seconds in (10, 10, 10.02, 10, 10, 10, 9.99, 10):
        measured.interval({"a": samples(100)}, seconds=seconds)
    assert measured.samples == 6


def test_a_long_window_has_a_bounded_number_of_slots() -> None:
    measured = Measured(_probe("a", interval_s=1, window_s=60))
    for _ in range(300):
        measured.interval({"a": samples(100)})
    window = measured.windows._windows["p"]
    assert len(window._slots) <= SLOTS + 1
    assert len(window._pods["a"].sums._entries) <= SLOTS + 1
    assert 56 <= measured.samples <= 60


@pytest.mark.parametrize(
    ("interval_s", "window_s"), [(1, 60), (10, 60), (10, 90), (10, 300), (7, 30), (60, 60)]
)
def test_a_pod_that_has_ended_leaves_the_reports_after_the_window_and_a_slot_at_most(
    interval_s: float, window_s: float
) -> None:
    slot_s, stays_s = slot_length_s(window_s, interval_s), []
    for phase in range(2 * round(slot_s / interval_s)):
        both = _probe("a", "b", interval_s=interval_s, window_s=window_s)
        measured = Measured(both)
        for _ in range(phase):
            measured.interval({"a": samples(100)})
        measured.interval({"a": samples(100), "b": samples(100)})
        # It may have ended right after the interval began.
        ended = last = measured.now - interval_s
        measured.follow(_probe("a", interval_s=interval_s, window_s=window_s))
        while "b" in measured.pods:
            last = measured.now
            measured.interval({"a": samples(100)})
        stays_s.append(last - ended)

    assert window_s <= max(stays_s) <= window_s + slot_s
    assert (max(stays_s) > window_s + interval_s) is (slot_s > 2 * interval_s)


_script = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abc"), measurements), st.sets(st.sampled_from("abc"))
    ),
    max_size=9,
)


@given(_script, st.sampled_from([3.0, 10.0]))
def test_the_sum_over_all_pods_is_that_of_their_windows(
    script: list[tuple[dict[str, Measurement], set[str]]], interval_s: float
) -> None:
    measured = Measured(_probe("a", "b", "c", interval_s=interval_s, window_s=30))
    for figures, present in script:
        measured.interval(figures)
        measured.follow(_probe(*sorted(present), interval_s=interval_s, window_s=30))
        measured.probe = _probe("a", "b", "c", interval_s=interval_s, window_s=30)
        window = measured.windows._windows["p"]
        pods = total(replace(pod.sums.value(), netns_counters={}) for pod in window._pods.values())
        assert _is_same(measured.report.summary.merged, pods)


def test_two_containers_of_a_pod_are_one_pod_and_count_their_namespace_once() -> None:
    probe = _probe("a")
    sidecar = DesiredTarget("a/s", ContainerSelector("a", "s"), "a", "sidecar")
    measured = Measured(replace(probe, targets=(*probe.targets, sidecar)))
    drops = Measurement(netns_counters={"TcpExtListenDrops": 3})
    taken = {"a/c": samples(100) + drops, "a/s": samples(200, 300) + drops}
    measured.windows.add([ProbeFigures(measured.probe, _at(0), _at(10), taken)])
    (pod,) = measured.report.pods
    assert pod.report.stages[0].count == 3
    assert pod.report.netns_counters == {"TcpExtListenDrops": 3}
    assert not measured.report.summary.merged.netns_counters


def test_pending_figures_are_of_the_newest_interval_and_of_all_containers() -> None:
    probe = _probe("a")
    sidecar = DesiredTarget("a/s", ContainerSelector("a", "s"), "a", "sidecar")
    measured = Measured(replace(probe, targets=(*probe.targets, sidecar)))
    of_server = Measurement(pending={"unreadSegments": Pending(200, 20, 40_000, 9, 90)})
    of_sidecar = Measurement(pending={"unreadSegments": Pending(2, 1, 100, 11, 20)})

    def pending_after(end: float, **taken: Measurement) -> object:
        figures = {f"a/{container}": each for container, each in taken.items()}
        measured.windows.add([ProbeFigures(measured.probe, _at(end - 10), _at(end), figures)])
        (pod,) = measured.report.pods
        assert measured.report.summary.merged.pending is None
        return pod.report.pending

    assert pending_after(10, c=samples(1) + of_server, s=of_sidecar) == {
        "unreadSegments": Pending(202, 21, 40_100, 11, 110)
    }
    assert pending_after(20, c=samples(1), s=of_sidecar) == of_sidecar.pending
    assert pending_after(30, c=samples(1)) == {}


def test_peers_are_of_the_newest_interval_and_of_all_containers() -> None:
    probe = _probe("a")
    sidecar = DesiredTarget("a/s", ContainerSelector("a", "s"), "a", "sidecar")
    measured = Measured(replace(probe, targets=(*probe.targets, sidecar)))
    peer = Peer(Endpoint(ip_address("10.0.0.7"), 7000), "missingAnswers", 2, 5, 9)
    waiting = Measurement(pending={"missingAnswers": Pending(2)}, peers=(peer,))

    def peers_after(end: float, **taken: Measurement) -> object:
        figures = {f"a/{container}": each for container, each in taken.items()}
        measured.windows.add([ProbeFigures(measured.probe, _at(end - 10), _at(end), figures)])
        (pod,) = measured.report.pods
        assert measured.report.summary.merged.peers == ()
        return pod.report.peers

    assert peers_after(10, c=samples(1) + waiting, s=waiting) == (peer + peer,)
    assert peers_after(20, c=samples(1), s=waiting) == (peer,)
    assert peers_after(30, c=samples(1)) == ()


def test_pods_are_sorted_by_score_and_equal_ones_by_uid() -> None:
    measured = Measured(_probe("a", "b", "c", "d", max_pods=3))
    figures = {"a": samples(10**6), "b": samples(10**6), "c": samples(10**7), "d": samples(10)}
    measured.interval(figures)
    report = measured.report
    assert [score.pod_uid for score in report.summary.scores] == ["c", "b", "a"]
    assert [pod.pod_uid for pod in report.pods] == ["c", "b", "a"]
    assert [pod.score for pod in report.pods] == [score.score for score in report.summary.scores]
    assert report.summary.pods == 4
    assert all(pod.report.stage("rx.total") for pod in report.pods)


def test_the_worst_pod_moves_with_its_figures() -> None:
    measured = Measured(_probe("a", "b", max_pods=1))
    measured.interval({"a": samples(10**7), "b": samples(10**6)})
    assert [*measured.pods] == ["a"]
    for _ in range(6):
        measured.interval({"a": samples(10**3), "b": samples(10**6)})
    assert [*measured.pods] == ["b"]


def test_pods_in_full_have_all_stages_though_only_some_are_shown() -> None:
    figures = samples(100) + samples(5, stage="tcp.rtt")
    for max_pods in (1, 2):
        measured = Measured(_probe("a", "b", max_pods=max_pods))
        measured.interval({"a": figures, "b": figures})
        assert [stage.name for stage in measured.report.pods[0].report.stages] == [
            "rx.total",
            "tcp.rtt",
        ]


def test_without_pods_a_summary_is_empty() -> None:
    measured = Measured(_probe())
    measured.interval()
    report = measured.report
    assert (report.pods, report.summary.scores, report.summary.pods) == ((), (), 0)
    assert not report.summary.merged
    assert not report.summary.unobserved_ns


def test_waiting_is_the_time_in_the_stage_that_a_verdict_blames() -> None:
    measured = Measured(_probe("a", "b", "c"))
    late = [5_000_000] * 200
    slow = samples(*late) + samples(*late, stage="rx.socket")
    measured.interval({"a": slow, "b": slow, "c": samples(*[100] * 200)})
    summary = measured.report.summary
    assert summary.verdicts == {"SlowReader": 2, "None": 1}
    assert summary.waiting_ns == {"SlowReader": 2 * sum(late)}


def test_a_pod_adds_only_to_the_waiting_of_its_own_cause() -> None:
    measured = Measured(_probe(*"abc"))
    late, early = [5_000_000] * 200, [200_000] * 5000
    slow = samples(*late) + samples(*late, stage="rx.socket")
    healthy = samples(*early) + samples(*early, stage="rx.socket")
    measured.interval({"a": slow, "b": healthy, "c": healthy})
    assert measured.report.pods[-1].report.verdict.waiting_ns["SlowReader"] == sum(early)
    summary = measured.report.summary
    assert summary.verdicts == {"SlowReader": 1, "None": 2}
    assert summary.waiting_ns == {"SlowReader": sum(late)}


def test_the_nodes_figures_are_those_of_the_window_and_of_the_modules() -> None:
    measured = Measured(_probe("a", modules=frozenset({Module.RX})))
    stage = samples(7).stage("rx.total")
    node = NodeMeasurement(
        {NodeStage("rx.total", "eth0"): stage, NodeStage("irq.hard", "eth0"): stage},
        {"softnetDropped": 1},
    )
    for _ in range(8):
        measured.interval({"a": samples(100)}, node=node)
    found = measured.report.node
    assert found.counters == {"softnetDropped": 6}
    assert found.stages.keys() == {NodeStage("rx.total", "eth0")}
    assert found.stages[NodeStage("rx.total", "eth0")].histogram.count == 6


def test_a_probe_of_the_node_alone_without_figures_misses_nothing() -> None:
    irq = replace(_probe("a", modules=frozenset({Module.IRQ})), node_figures=False)
    measured = Measured(irq)
    measured.follow(irq, active=frozenset())
    measured.interval()
    assert _unobserved_s(measured) == 0


# Pods that end


def test_a_pod_that_has_ended_stays_until_the_window_has_passed() -> None:
    measured = Measured(_probe("a", "b"))
    measured.interval({"a": samples(100), "b": samples(200)})
    measured.follow(_probe("b"))
    for _ in range(5):
        measured.interval({"b": samples(200)})
        assert measured.pods["a"].ended
        assert measured.pods["a"].name == "pod-a"
        assert measured.report.summary.pods == 2
    measured.interval({"b": samples(200)})
    assert [*measured.pods] == ["b"]
    assert measured.samples == 6


def test_a_pod_without_packets_that_has_ended_stays_as_long() -> None:
    measured = Measured(_probe("a"))
    measured.interval()
    measured.follow(_probe())
    for _ in range(5):
        measured.interval()
        assert measured.pods["a"].ended
    measured.interval()
    assert not measured.pods


def test_figures_of_a_target_that_left_before_the_interval_ended_are_its_pods() -> None:
    measured = Measured(_probe("a"))
    (target,) = measured.probe.targets
    measured.follow(_probe(), departed={target: samples(100)})
    measured.interval()
    assert measured.pods["a"].ended
    assert measured.samples == 1


def test_a_pod_that_is_not_attached_yet_is_not_measured_and_has_not_ended() -> None:
    measured = Measured(_probe("a"))
    measured.follow(
        _probe("a", "b"),
        pods=[PodTargets("a", "", (), True, False), PodTargets("b", "", (), False)],
    )
    measured.interval()
    assert [*measured.pods] == ["a"]
    measured.follow(_probe("a"), pods=[PodTargets("a", "", (), False, False)])
    measured.interval()
    assert not measured.pods["a"].ended


def test_a_pod_that_comes_back_has_not_ended() -> None:
    measured = Measured(_probe("a"))
    measured.interval({"a": samples(100)})
    measured.follow(_probe())
    measured.follow(_probe("a"))
    measured.interval()
    assert not measured.pods["a"].ended
    assert measured.samples == 1


def test_of_many_ended_pods_the_newest_are_kept_and_the_sums_have_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 2)
    measured = Measured(_probe("a"))
    for uid in "abcd":
        measured.follow(_probe(uid))
        measured.interval({uid: samples(100)})
    measured.follow(_probe())
    measured.interval()
    assert sorted(measured.pods) == ["c", "d"]
    assert measured.samples == 4
    assert measured.report.summary.verdicts == {"InsufficientData": 4}
    counts = []
    while measured.report.summary.pods:
        measured.interval()
        counts.append((measured.samples, measured.report.summary.pods))
    assert counts == [(4, 4), (3, 3), (2, 2), (1, 1), (0, 0)]


def test_a_summary_never_has_more_pods_than_an_operator_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = MAX_TARGETS + by_probe.MAX_ENDED_PODS + probe_window.MAX_DROPPED_PODS
    assert most <= MAX_SUMMARISED_PODS
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 1)
    monkeypatch.setattr(probe_window, "MAX_DROPPED_PODS", 2)
    measured = Measured(_probe(*"abcdef"))
    measured.interval({uid: samples(100) for uid in "abcdef"})
    measured.follow(_probe())
    measured.interval()
    assert (measured.report.summary.pods, measured.samples) == (3, 6)


def test_pods_that_are_dropped_and_come_back_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 2)
    measured = Measured(_probe(*"abcdef"))
    late = [5_000_000] * 200
    slow = samples(*late) + samples(*late, stage="rx.socket")
    measured.interval(dict.fromkeys("abcdef", slow))
    before = measured.report.summary
    measured.follow(_probe())
    measured.interval()
    assert measured.report.summary.verdicts == before.verdicts
    assert measured.report.summary.waiting_ns == before.waiting_ns
    measured.follow(_probe(*"abcdef"))
    measured.interval(dict.fromkeys("abcdef", slow))
    assert measured.report.summary.verdicts == before.verdicts
    assert measured.samples == 2 * 6 * len(late)
    measured.follow(_probe())
    measured.interval()
    assert measured.report.summary.pods == 6


def test_of_dropped_pods_as_many_are_remembered_as_can_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 0)
    monkeypatch.setattr(by_probe, "MAX_REMEMBERED_PODS", 2)
    measured = Measured(_probe(*"abcd"))
    measured.interval(dict.fromkeys("abcd", samples(100)))
    measured.follow(_probe())
    assert len(measured.windows._dropped) == 2
    measured.interval()
    assert measured.report.summary.pods == 4


def test_the_pods_of_a_drain_are_dropped_by_their_totals_and_one_value_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 1)
    measured = Measured(_probe(*"abcd"))
    measured.interval({uid: samples(100) for uid in "abcd"})
    values = Mock(return_value=NodeMeasurement())
    reports = Mock(wraps=report_on)
    monkeypatch.setattr(WindowOfNode, "value", values)
    monkeypatch.setattr(probe_window, "report_on", reports)

    measured.follow(_probe())

    assert values.call_count == 1
    assert [call.kwargs["only_stages"] for call in reports.mock_calls] == [TOTALS] * 3
    measured.interval()
    assert measured.report.summary.verdicts == {"InsufficientData": 4}


@pytest.mark.parametrize("window_s", [60, 20, 10])
def test_a_pod_that_is_dropped_before_its_last_figures_counts_once_as_long_as_they_do(
    monkeypatch: pytest.MonkeyPatch, window_s: float
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 1)
    measured = Measured(_probe(*"abc", window_s=window_s))
    measured.interval({uid: samples(100) for uid in "abc"})
    departed = {target: samples(100) for target in measured.probe.targets}
    measured.now += 1
    measured.follow(_probe(window_s=window_s), departed=departed)
    measured.interval(seconds=9)
    assert [pod.name for pod in measured.report.pods] == [f"pod-{measured.report.pods[0].pod_uid}"]
    counts = []
    while measured.samples:
        counts.append((measured.samples, measured.report.summary.pods))
        measured.interval()
    assert counts == [(6, 3)] * round(window_s / 10 - 1) + [(3, 3)]
    assert measured.report.summary.pods == 0


def test_a_pod_that_is_dropped_before_any_interval_counts_with_its_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 1)
    measured = Measured(_probe(*"abc"))
    targets = measured.probe.targets
    measured.follow(_probe(), departed={target: samples(100) for target in targets})
    measured.interval()
    assert (measured.report.summary.pods, measured.samples) == (3, 3)


def _samples_of(pod: PodReport) -> int:
    return pod.report.stages[0].count


def _targets(uids: str) -> dict[str, DesiredTarget]:
    return {target.pod_name: target for target in _probe(*uids).targets}


@pytest.mark.parametrize("is_first", [True, False])
def test_pods_that_end_within_an_interval_are_kept_like_others(
    monkeypatch: pytest.MonkeyPatch, *, is_first: bool
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 2)
    targets = _targets("abcdef")
    measured = Measured(_probe("z"))
    if not is_first:
        measured.interval()
    for uid, after in zip("abcdef", "bcdef-", strict=True):
        measured.now += 1
        measured.follow(
            _probe("z", after) if after != "-" else _probe("z"),
            departed={targets[uid]: samples(100)},
        )
        (window,) = measured.windows._windows.values()
        assert len(window.ended) <= 2
    measured.interval({"z": samples(100)})
    assert sorted(measured.pods) == ["e", "f", "z"]
    assert all(_samples_of(measured.pods[uid]) == 1 for uid in "efz")
    assert measured.samples == 7
    assert measured.report.summary.pods == 7
    measured.interval({"z": samples(100)})
    assert measured.samples == 8


def test_the_verdict_on_a_pod_that_is_dropped_has_its_last_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 0)
    measured = Measured(_probe("a"))
    slow = samples(*[50_000_000] * 1000)
    measured.follow(_probe(), departed={_targets("a")["a"]: slow})
    measured.interval()
    (verdict,) = measured.report.summary.verdicts
    assert verdict != "InsufficientData"


def test_a_container_that_left_counts_for_its_pod_which_has_not_ended() -> None:
    measured = Measured(_probe("a"))
    (target,) = measured.probe.targets
    for _ in range(2):
        measured.follow(_probe("a"), departed={replace(target, id="a/old"): samples(100)})
    measured.interval({"a": samples(200)})
    assert not measured.pods["a"].ended
    assert (_samples_of(measured.pods["a"]), measured.samples) == (3, 3)


def _cgroup_of(target: DesiredTarget) -> Measurement:
    """Figures that two containers of a pod share, and a snapshot of what waits."""
    peer = Peer(Endpoint(ip_address("10.0.0.7"), 7000), "missingAnswers", 2, 5, 9)
    return Measurement(
        counters={"cpuThrottledNs": 5, "cpuThrottledPeriods": 1, "rtos": 1},
        netns_counters={"TcpExtListenDrops": 7},
        pending={"missingAnswers": Pending(3)},
        peers=(peer,),
    )


@pytest.mark.parametrize("is_back", [True, False])
def test_stays_of_one_target_within_an_interval_follow_each_other(*, is_back: bool) -> None:
    measured = Measured(_probe("a"))
    (target,) = measured.probe.targets
    figures = _cgroup_of(target)
    for _ in range(2):
        measured.follow(_probe(), departed={target: figures})
        measured.follow(_probe("a"))
    if not is_back:
        measured.follow(_probe(), departed={target: figures})
    measured.interval({"a": figures} if is_back else {})
    report = measured.pods["a"].report
    assert (report.counters["cpuThrottledNs"], report.counters["rtos"]) == (15, 3)
    assert report.netns_counters == {"TcpExtListenDrops": 21}
    assert (report.pending, report.peers) == (figures.pending, figures.peers)


def test_containers_of_a_pod_that_left_one_by_one_ran_at_the_same_time() -> None:
    measured = Measured(_probe("a"))
    (target,) = measured.probe.targets
    figures = _cgroup_of(target)
    for name in ("a/s", "a/t"):
        measured.follow(_probe("a"), departed={replace(target, id=name): figures})
    measured.interval({"a": figures})
    report = measured.pods["a"].report
    assert (report.counters["cpuThrottledNs"], report.counters["rtos"]) == (5, 3)
    assert report.netns_counters == {"TcpExtListenDrops": 7}


def test_stays_of_a_container_follow_each_other_beside_one_that_stays() -> None:
    probe = _probe("a")
    sidecar = DesiredTarget("a/s", ContainerSelector("a", "s"), "a", "sidecar")
    both = replace(probe, targets=(*probe.targets, sidecar))
    alone = replace(probe, targets=(sidecar,))
    measured = Measured(both)
    (target,) = probe.targets
    figures = _cgroup_of(target)
    for _ in range(2):
        measured.follow(alone, departed={target: figures})
        measured.follow(both)
    measured.windows.add([ProbeFigures(both, _at(0), _at(10), {"a/c": figures, "a/s": figures})])
    report = measured.pods["a"].report
    assert (report.counters["cpuThrottledNs"], report.counters["rtos"]) == (15, 4)
    assert report.netns_counters == {"TcpExtListenDrops": 21}
    (peer,) = figures.peers
    assert report.pending == {"missingAnswers": Pending(6)}
    assert report.peers == (peer + peer,)


def _restarted(target: DesiredTarget, number: int) -> DesiredTarget:
    """The container of this target, by the ID that it has after so many restarts."""
    pod_uid, identity = target.pod_name, f"{target.container_name}{number}"
    return replace(target, id=identity, selector=ContainerSelector(pod_uid, identity))


def test_restarts_of_a_container_within_an_interval_follow_each_other() -> None:
    named = DesiredTarget("app0", ContainerSelector("a", "app0"), "a", "app")
    measured = Measured(replace(_probe("a"), targets=(named,)))
    figures = _cgroup_of(named)
    for number in range(3):
        after = replace(measured.probe, targets=(_restarted(named, number + 1),))
        measured.follow(after, departed={_restarted(named, number): figures})
    measured.windows.add([ProbeFigures(measured.probe, _at(0), _at(10), {"app3": figures})])
    report = measured.pods["a"].report
    assert (report.counters["cpuThrottledNs"], report.counters["rtos"]) == (20, 4)
    assert report.netns_counters == {"TcpExtListenDrops": 28}
    assert (report.pending, report.peers) == (figures.pending, figures.peers)


def test_figures_of_very_many_containers_that_left_a_pod_take_bounded_memory() -> None:
    measured = Measured(_probe("a"))
    for number in range(20):
        name = f"debug{number}"
        left = DesiredTarget(name, ContainerSelector("a", name), "a", name)
        measured.follow(_probe("a"), departed={left: _cgroup_of(left)})
    (kept,) = measured.windows._windows["p"]._pods.values()
    assert len(kept._left) == probe_window.MAX_LEFT_CONTAINERS
    measured.interval()
    report = measured.pods["a"].report
    assert (report.counters["cpuThrottledNs"], report.counters["rtos"]) == (5, 20)
    assert report.netns_counters == {"TcpExtListenDrops": 7}


def test_figures_of_pods_that_are_dropped_at_once_are_packed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 2)
    packed = Mock(wraps=packing.pack)
    monkeypatch.setattr(early_figures, "pack", packed)
    measured = Measured(_probe(*"abcdefgh"))
    departed = {target: samples(100) for target in measured.probe.targets}
    measured.follow(_probe(), departed=departed)
    assert packed.call_count == 3
    measured.interval()
    assert measured.samples == 8


def test_a_pod_that_is_dropped_and_back_in_one_interval_has_its_later_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 1)
    measured = Measured(_probe("a", "b"))
    measured.interval({"a": samples(100), "b": samples(100)})
    measured.follow(_probe("b"))
    measured.now += 1
    measured.follow(_probe())
    assert [*measured.windows._windows["p"]._pods] == ["b"]
    measured.follow(_probe("a"))
    (target,) = measured.probe.targets
    measured.follow(_probe("a"), departed={replace(target, id="a/old"): samples(*[100] * 5)})
    measured.interval({"a": samples(100)})
    assert _samples_of(measured.pods["a"]) == 6
    assert measured.samples == 8


def test_a_namespace_with_many_ended_pods_costs_no_other_one_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 5)
    ended = {("bank", "b"): "ab", ("shop", "s"): "cdef", ("shop", "t"): "ghij"}
    probes = [
        replace(_probe(*uids), id=name, namespace=namespace)
        for (namespace, name), uids in ended.items()
    ]
    windows = Windows()

    def follow(now: float, *, ending: bool) -> None:
        pods = {
            each.id: [PodTargets(t.pod_name, "", ("c",), True, False) for t in each.targets]
            for each in probes
        }
        state = Desired(1, tuple(replace(p, targets=()) if ending else p for p in probes))
        windows.follow(state, {} if ending else pods, ALL_MODULES, asked=_at(now), now=_at(now))

    follow(0, ending=False)
    figures = [{target.id: samples(100) for target in probe.targets} for probe in probes]
    windows.add(ProbeFigures(p, _at(0), _at(10), f) for p, f in zip(probes, figures, strict=True))
    follow(10, ending=True)
    windows.add(ProbeFigures(replace(p, targets=()), _at(10), _at(20), {}) for p in probes)
    reports = {name: windows.take(name, ()) for name in "bst"}
    kept = {name: len(report.pods) for name, report in reports.items() if report is not None}
    assert kept["b"] == 2
    assert kept["s"] + kept["t"] == 3
    summaries = [report.summary.pods for report in reports.values() if report is not None]
    assert summaries == [2, 4, 4]


def test_a_namespace_with_many_dropped_pods_has_no_other_ones_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 0)
    monkeypatch.setattr(by_probe, "MAX_REMEMBERED_PODS", 3)
    bank = replace(_probe("a"), id="bank", namespace="bank")
    shop = replace(_probe(*"bcde"), id="shop", namespace="shop")
    windows = Windows()

    def follow(now: float, *probes: DesiredProbe) -> None:
        pods = {
            each.id: [PodTargets(t.pod_name, "", ("c",), True, False) for t in each.targets]
            for each in probes
        }
        windows.follow(Desired(1, probes), pods, ALL_MODULES, asked=_at(now), now=_at(now))

    follow(0, bank, shop)
    follow(1, replace(bank, targets=()), shop)
    follow(2, replace(bank, targets=()), replace(shop, targets=()))
    follow(3, bank, replace(shop, targets=()))
    windows.add([ProbeFigures(bank, _at(0), _at(10), {"a/c": samples(100)})])
    report = windows.take("bank", ())
    assert report is not None
    assert report.summary.pods == 1


def test_pods_that_come_and_go_within_an_interval_cost_no_other_namespace_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_probe, "MAX_ENDED_PODS", 4)
    bank = replace(_probe("a", "b"), id="bank", namespace="bank")
    shop = replace(_probe(*"cdefghij"), id="shop", namespace="shop")
    windows = Windows()

    def leave(now: float, probe: DesiredProbe, uid: str) -> None:
        (target,) = (each for each in probe.targets if each.pod_name == uid)
        empty = tuple(replace(each, targets=()) for each in (bank, shop))
        figures = {probe.id: {target: samples(100)}}
        windows.follow(Desired(1, empty), {}, ALL_MODULES, figures, asked=_at(now), now=_at(now))

    for number, uid in enumerate("abcdefghij"):
        leave(number, bank if uid in "ab" else shop, uid)
    windows.add(ProbeFigures(replace(p, targets=()), _at(0), _at(10), {}) for p in (bank, shop))
    reports = {name: windows.take(name, ()) for name in ("bank", "shop")}
    kept = {
        name: {pod.pod_uid: _samples_of(pod) for pod in report.pods}
        for name, report in reports.items()
        if report is not None
    }
    assert kept == {"bank": {"a": 1, "b": 1}, "shop": {"i": 1, "j": 1}}
    pods = [report.summary.pods for report in reports.values() if report is not None]
    assert pods == [2, 8]


# Changes of the probe


@pytest.mark.parametrize(
    "changed",
    [
        _probe("a", socket_filter=SocketFilter(frozenset({443}))),
        _probe("a", modules=frozenset({Module.RX})),
        replace(_probe("a"), node_figures=False),
    ],
)
def test_another_measurement_clears_the_window(changed: DesiredProbe) -> None:
    measured = Measured(_probe("a"))
    measured.interval({"a": samples(100)})
    measured.follow(changed)
    assert not measured.windows.due
    measured.interval({"a": samples(100)})
    assert measured.samples == 1


def test_another_interval_or_window_only_resizes() -> None:
    measured = Measured(_probe("a"))
    for _ in range(6):
        measured.interval({"a": samples(100)})
    measured.follow(_probe("a", interval_s=5, window_s=120))
    measured.interval({"a": samples(100)})
    assert measured.samples == 7
    measured.follow(_probe("a", interval_s=5, window_s=20))
    measured.interval({"a": samples(100)})
    assert measured.samples == 3


def test_a_probe_that_is_removed_leaves_nothing() -> None:
    measured = Measured(_probe("a"))
    measured.interval({"a": samples(100)})
    measured.follow()
    assert not measured.windows.due
    assert measured.windows.take("p", ()) is None
    measured.follow(_probe("a"))
    measured.interval()
    assert measured.samples == 0


# Time without a measurement


def _unobserved_s(measured: Measured) -> float:
    return measured.report.summary.unobserved_ns / 1e9


def test_the_time_until_the_programs_were_attached_is_unobserved() -> None:
    measured = Measured(_probe())
    measured.now = 3
    measured.follow(_probe("a"), asked=1)
    measured.interval(seconds=7)
    assert _unobserved_s(measured) == 2
    for _ in range(5):
        measured.interval()
        assert _unobserved_s(measured) == 2
    for _ in range(2):
        measured.interval()
    assert _unobserved_s(measured) == 0


def test_time_before_the_probe_was_applied_is_not_missed() -> None:
    measured = Measured(_probe("a"), at=1000)
    measured.interval()
    assert _unobserved_s(measured) == 0


def test_time_without_programs_is_unobserved_while_it_lasts_and_afterwards() -> None:
    measured = Measured(_probe("a"))
    measured.interval()
    measured.follow(_probe("a"), active=frozenset())
    measured.interval()
    measured.interval()
    assert _unobserved_s(measured) == 20
    measured.follow(_probe("a"))
    measured.interval()
    assert _unobserved_s(measured) == 20


def test_a_report_has_the_age_of_its_window() -> None:
    measured = Measured(_probe("a"), at=1000)
    measured.now = 1003
    ages = []
    for _ in range(8):
        measured.interval()
        ages.append(measured.report.summary.kept_ns)
    assert ages == [round(seconds * 1e9) for seconds in range(13, 90, 10)]


def test_a_window_of_the_agents_first_state_differs_from_a_later_one() -> None:
    windows = Windows()
    windows.follow(NOTHING_DESIRED, {}, ALL_MODULES, asked=_at(0), now=_at(0))
    first, later = _probe("a"), replace(_probe("b"), id="later")

    def of_first_state(*probes: DesiredProbe) -> list[bool]:
        windows.follow(Desired(1, probes), {}, ALL_MODULES, asked=_at(1), now=_at(1))
        windows.add(ProbeFigures(probe, _at(1), _at(10), {}) for probe in probes)
        reports = [windows.take(probe.id, ()) for probe in probes]
        return [report.summary.of_first_state for report in reports if report is not None]

    assert of_first_state(first) == [True]
    assert of_first_state(first, later) == [True, False]
    windows.suspend(_at(11))
    windows.follow(NOTHING_DESIRED, {}, ALL_MODULES, asked=_at(12), now=_at(12))
    assert of_first_state(first, later) == [True, False], "the window goes on"
    changed = replace(first, modules=frozenset({Module.RX}))
    assert of_first_state(changed) == [False]


def test_without_a_pod_nothing_is_missed() -> None:
    measured = Measured(_probe("a"))
    measured.interval()
    measured.follow(_probe(), active=frozenset())
    measured.interval()
    assert _unobserved_s(measured) == 0


def test_the_time_without_a_lease_is_unobserved_and_the_window_goes_on() -> None:
    measured = Measured(_probe("a"))
    measured.interval({"a": samples(100)})
    measured.windows.suspend(_at(measured.now))
    measured.follow()
    measured.now += 20
    measured.follow(_probe("a"))
    assert not measured.windows.due
    measured.interval({"a": samples(100)})
    assert _unobserved_s(measured) == 20
    assert measured.samples == 2
    assert not measured.pods["a"].ended


# Reports


def test_each_interval_is_due_once_and_all_are_due_again_for_a_new_client() -> None:
    measured = Measured(_probe("a"))
    assert not measured.windows.due
    measured.interval({"a": samples(100)})
    assert measured.windows.due == ["p"]
    first = measured.report
    assert not measured.windows.due
    measured.windows.take_again()
    assert measured.windows.due == ["p"]
    measured.follow(_probe("a", "b"))
    assert measured.report == replace(first, probe=_probe("a", "b"))


def test_counters_that_the_node_cannot_count_are_absent() -> None:
    measured = Measured(_probe("a"))
    measured.interval({"a": samples(100)})
    report = measured.windows.take("p", {"rtos"})
    assert report is not None
    assert "rtos" not in report.pods[0].report.counters
    assert "retransmits" in report.pods[0].report.counters


def test_a_target_that_is_no_container_stands_for_itself() -> None:
    measured = Measured(replace(_probe(), targets=(DesiredTarget("t", PidSelector(1)),)))
    measured.windows.add([ProbeFigures(measured.probe, _at(0), _at(10), {"t": samples(100)})])
    assert [*measured.pods] == ["t"]
