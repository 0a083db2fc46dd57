"""The score of a pod: by its slower total, and above all if something is wrong with it."""

from __future__ import annotations

import pytest

from latencyprobe.domain.attention import ATTENTION_P99_NS
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement, StageMeasurement
from latencyprobe.domain.report import report_on
from latencyprobe.domain.score import TROUBLED, score_of
from latencyprobe.domain.stages import Module


def _score(measurement: Measurement) -> int:
    return score_of(report_on(measurement, Module))


def _stages(**durations_ns: list[int]) -> Measurement:
    return Measurement(
        {
            name.replace("_", "."): StageMeasurement(Histogram.of(each))
            for name, each in durations_ns.items()
        }
    )


def test_the_score_is_the_p99_of_the_slower_total() -> None:
    both = _stages(rx_total=[1000] * 50, tx_total=[9000] * 50)
    assert _score(both) == both.stage("tx.total").histogram.percentile(99)


def test_a_pod_without_data_has_the_lowest_score() -> None:
    assert _score(NOTHING) == 0


def test_a_pod_with_a_verdict_is_above_the_slowest_without() -> None:
    slow_reader = _stages(
        rx_total=[2 * ATTENTION_P99_NS] * 200, rx_socket=[2 * ATTENTION_P99_NS] * 200
    )
    assert report_on(slow_reader, Module).verdict.bottleneck is Bottleneck.SLOW_READER
    # Too few packets for a verdict, of an hour each.
    slowest = _stages(rx_total=[3600 * 10**9] * 10)
    assert _score(slow_reader) > TROUBLED > _score(slowest)


@pytest.mark.parametrize("counter", ["connectTimedOut", "acceptQueueOverflows", "drops.NETFILTER"])
def test_a_pod_with_failures_or_drops_is_above_the_slowest_without(counter: str) -> None:
    assert _score(Measurement({}, {counter: 1})) >= TROUBLED


@pytest.mark.parametrize("reason", ["TCP_OLD_DATA", "TCP_OLD_ACK", "TCP_RFC7323_PAWS"])
def test_drops_of_packets_that_are_not_needed_are_no_failures(reason: str) -> None:
    harmless = {f"drops.{reason}": 7, "dropsIn.tcp_rcv_established": 7}
    assert _score(Measurement({}, harmless)) == 0
    assert _score(Measurement({}, {**harmless, "drops.QDISC_DROP": 1})) >= TROUBLED


@pytest.mark.parametrize("counter", ["retransmits", "headOfLineSegments", "connectAborted"])
def test_waiting_and_an_end_by_the_application_are_no_failures(counter: str) -> None:
    assert _score(Measurement({}, {counter: 1000})) == 0
