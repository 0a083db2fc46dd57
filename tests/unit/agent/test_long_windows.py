"""Sums over a whole day may exceed what a message carries: they are limited, and arrive."""

from __future__ import annotations

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.summary import PodReport, ProbeSummary
from latencyprobe.domain.verdict import Verdict
from latencyprobe.protocol.limits import LARGEST_NUMBER, check_node
from latencyprobe.protocol.summaries import pod_from_proto, summary_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.collector import Moment
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.serving.summary_messages import frame, summary_report, with_pods
from latencyprobe_agent.windows.probe_window import WindowReport
from tests.unit.agent.states import probe, state

DAY_NS = 86_400 * 10**9
# Two hundred packets that wait at any time of the day.
WAITED_NS = 200 * DAY_NS
WAITED = StageMeasurement(Histogram({1: 1_000_000}, WAITED_NS, 1, WAITED_NS // 1_000_000))


@pytest.fixture
def report() -> WindowReport:
    """A report on a day in which more was waited than a number of a message holds."""
    (desired,) = parse_desired(state(probe(modules=("rx", "tx", "irq")))).probes
    measured = Measurement({"rx.total": WAITED}, {"behindWindowNs": WAITED_NS})
    node = NodeMeasurement({NodeStage("rx.irq"): WAITED}, {"cpuPressureNs": WAITED_NS})
    verdict = Verdict(
        Bottleneck.SLOW_READER, 100, (), "", "rx.socket", waiting_ns={"SlowReader": WAITED_NS}
    )
    counters = {"behindWindowNs": WAITED_NS}
    pod = PodReport("uid", "a", (), 1, TargetReport((), counters, {"DelayNs": WAITED_NS}, verdict))
    summary = ProbeSummary(merged=measured, waiting_ns={"SlowReader": WAITED_NS})
    begin, end = Moment(0, 0), Moment(86_400, DAY_NS)
    return WindowReport(desired, begin, end, summary, (pod,), node)


def test_the_sums_of_a_pod_are_limited(report: WindowReport) -> None:
    (message,) = with_pods(frame(report), report.pods, pb.ProbeReport, most=1 << 20)
    received = pod_from_proto(message.pods[0]).report
    assert received.counters == {"behindWindowNs": LARGEST_NUMBER}
    assert received.netns_counters == {"DelayNs": LARGEST_NUMBER}
    assert received.verdict.waiting_ns == {"SlowReader": LARGEST_NUMBER}


def test_the_sums_of_a_node_are_limited(report: WindowReport) -> None:
    message = summary_report(report, ())
    check_node(message.node)
    assert [stage.histogram.sum_ns for stage in message.node.stages] == [LARGEST_NUMBER]
    assert message.node.counters == {"cpuPressureNs": LARGEST_NUMBER}


def test_the_sums_of_all_pods_are_limited(report: WindowReport) -> None:
    received = summary_from_proto(summary_report(report, ()).summary)
    assert received.merged.stages["rx.total"].histogram.sum_ns == LARGEST_NUMBER
    assert received.merged.counters == {"behindWindowNs": LARGEST_NUMBER}
    assert received.waiting_ns == {"SlowReader": LARGEST_NUMBER}
