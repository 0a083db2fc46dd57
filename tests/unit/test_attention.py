"""Objectives override what is worth a person's attention, for verdicts as for conditions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.causes import NO_ACCUSATION, Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement, StageMeasurement
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.verdict import Verdict, judge
from tests.unit.equal_packets import MS, US, measured

QUICK = measured(200, rx_stack=10 * US, rx_socket=10 * US, tx_stack=10 * US, tx_socket=10 * US)


def stage(name: str, *durations_ns: int) -> Measurement:
    """A measurement of one stage, that is no part of a total."""
    return Measurement({name: StageMeasurement(Histogram.of(list(durations_ns)))})


def test_a_single_request_that_an_objective_allows_is_not_late() -> None:
    hung = Pending(1, 1, oldest_ns=24_000 * MS, waiting_ns=24_000 * MS)
    busy = replace(measured(1000, peer_response=US), pending={"missingAnswers": hung})
    assert "1 missing answer for 24s" in judged(busy).evidence
    allowed = judged(busy, Objective("peer.response", 99, 60_000 * MS))
    assert "1 missing answer for 24s" not in allowed.evidence


def judged(measurement: Measurement, *objectives: Objective) -> Verdict:
    return judge(measurement, objectives=objectives)


@pytest.mark.parametrize(
    ("measurement", "objective", "bottleneck"),
    [
        (
            measured(rx_stack=20 * US, rx_socket=400 * US),
            Objective("rx.socket", 99, 100 * US),
            Bottleneck.SLOW_READER,
        ),
        (
            measured(rx_stack=20 * US, rx_socket=400 * US),
            Objective("rx.total", 50, 200 * US),
            Bottleneck.SLOW_READER,
        ),
        (
            measured(tx_stack=20 * US, tx_qdisc=300 * US),
            Objective("tx.total", 99, 100 * US),
            Bottleneck.QDISC_BACKLOG,
        ),
        (
            QUICK + measured(app_response=700 * US),
            Objective("app.response", 50, 500 * US),
            Bottleneck.APPLICATION,
        ),
        (
            QUICK + measured(peer_response=700 * US, tcp_rtt=100 * US),
            Objective("peer.response", 50, 500 * US),
            Bottleneck.PEER,
        ),
        (
            QUICK + measured(peer_response=2100 * US, tcp_rtt=2000 * US),
            Objective("peer.response", 99, 1000 * US),
            Bottleneck.NETWORK,
        ),
        (
            QUICK + measured(tcp_rtt=2 * MS, tcp_connect=2 * MS),
            Objective("tcp.connect", 99, 1000 * US),
            Bottleneck.NETWORK,
        ),
        (
            QUICK + measured(rx_socket=900 * US, tcp_accept=900 * US),
            Objective("tcp.accept", 99, 100 * US),
            Bottleneck.ACCEPT_QUEUE,
        ),
        (
            QUICK + measured(udp_response=800 * US),
            Objective("udp.response", 99, 100 * US),
            Bottleneck.PEER,
        ),
        (
            QUICK + measured(100, tcp_recovery=900 * US),
            Objective("tcp.recovery", 50, 200 * US),
            Bottleneck.PACKET_LOSS,
        ),
    ],
)
def test_the_verdict_names_the_cause_of_a_missed_objective_below_the_bounds(
    measurement: Measurement, objective: Objective, bottleneck: Bottleneck
) -> None:
    verdict = judged(measurement, objective)

    assert judge(measurement).bottleneck is Bottleneck.NONE
    assert verdict.bottleneck is bottleneck
    assert any(line.startswith("objective missed: p") for line in verdict.evidence)


def test_the_figures_of_a_missed_objective_are_evidence() -> None:
    verdict = judged(measured(rx_socket=400 * US), Objective("rx.socket", 99, 100 * US))

    assert "objective missed: p99 of rx.socket is 400us, at most 100us" in verdict.evidence


def test_a_missed_objective_is_never_nothing_to_do() -> None:
    work = measured(rx_stack=900 * US, rx_socket=10 * US)
    verdict = judged(work, Objective("rx.total", 99, 100 * US))

    assert judge(work).next_step.startswith("Nothing to do")
    assert verdict.bottleneck is Bottleneck.NONE
    assert "see the stages" in verdict.next_step
    assert verdict.evidence[0].startswith("objective missed: p99 of rx.total is 910us")


@pytest.mark.parametrize(
    ("measurement", "objective"),
    [
        (measured(rx_stack=MS, rx_socket=20 * MS), Objective("rx.socket", 99, 50 * MS)),
        (measured(rx_stack=MS, rx_socket=20 * MS), Objective("rx.total", 99, 50 * MS)),
        (QUICK + measured(app_response=20 * MS), Objective("app.response", 90, 50 * MS)),
        (QUICK + measured(tcp_rtt=30 * MS), Objective("tcp.rtt", 99, 100 * MS)),
        (
            QUICK + measured(peer_response=31 * MS, tcp_rtt=30 * MS),
            Objective("peer.response", 99, 100 * MS),
        ),
        (
            measured(rx_socket=10 * US)
            + Measurement(pending={"unreadSegments": Pending(9, 9, oldest_ns=2 * 10**9)}),
            Objective("rx.socket", 99, 5 * 10**9),
        ),
    ],
)
def test_a_wait_within_an_objective_that_is_met_is_no_accusation(
    measurement: Measurement, objective: Objective
) -> None:
    verdict = judged(measurement, objective)

    assert verdict.bottleneck is Bottleneck.NONE
    assert verdict.next_step.startswith("Nothing to do")
    assert any(line.startswith("objectives met: p") for line in verdict.evidence)


def test_a_median_that_is_met_excuses_no_longer_waits_once_in_a_hundred() -> None:
    tail = measured(980, rx_socket=20 * US) + measured(20, rx_socket=40 * MS)

    assert judged(tail, Objective("rx.socket", 50, MS)).bottleneck is Bottleneck.SLOW_READER
    assert judged(tail, Objective("rx.socket", 50, 50 * MS)).bottleneck is Bottleneck.NONE


def test_a_strict_objective_that_is_met_lowers_no_bound() -> None:
    tail = measured(980, rx_socket=20 * US) + measured(20, rx_socket=4 * MS)

    assert judged(tail, Objective("rx.socket", 50, 100 * US)).bottleneck is Bottleneck.NONE


def test_one_missed_objective_of_a_stage_counts_beside_others_that_are_met() -> None:
    late = measured(rx_stack=MS, rx_socket=20 * MS)
    met, missed = Objective("rx.socket", 50, 50 * MS), Objective("rx.total", 99, 10 * MS)

    assert judged(late, met, missed).bottleneck is Bottleneck.SLOW_READER


def test_an_objective_says_nothing_of_other_stages() -> None:
    late = measured(rx_stack=MS, rx_socket=20 * MS, tx_stack=US)

    assert judged(late, Objective("tx.total", 99, 10**9)).bottleneck is Bottleneck.SLOW_READER


def test_an_objective_on_few_samples_decides_nothing() -> None:
    few = QUICK + stage("app.response", *[700 * US] * 99)

    assert judged(few, Objective("app.response", 50, 500 * US)) == judge(few)


def test_no_objective_excuses_failures() -> None:
    dropped = Measurement(counters={"receiveQueueOverflows": 50})
    verdict = judged(QUICK + dropped, Objective("rx.total", 99, 10**10))

    assert verdict.bottleneck is Bottleneck.DROPS


def test_without_packets_an_objective_is_no_evidence() -> None:
    assert judged(NOTHING, Objective("rx.total", 99, MS)) == judge(NOTHING)


DURATIONS = st.integers(1, 100 * MS)
PARTS = ("rx.softirq", "rx.socket", "tx.qdisc", "app.response", "tcp.rtt")


@given(
    st.fixed_dictionaries({name.replace(".", "_"): DURATIONS for name in PARTS}),
    st.sampled_from((*PARTS, "rx.total", "tx.total")),
    DURATIONS,
)
def test_a_met_objective_adds_no_accusation_and_a_missed_one_removes_none(
    durations_ns: dict[str, int], name: str, max_ns: int
) -> None:
    measurement = measured(100, counters=None, **durations_ns)
    before, after = judge(measurement), judged(measurement, Objective(name, 99, max_ns))
    value_ns = measurement.stage(name).histogram.percentile(99)

    acquits, accuses = before, after
    if value_ns > max_ns:
        acquits, accuses = after, before
    if acquits.bottleneck in NO_ACCUSATION:
        assert accuses.bottleneck in NO_ACCUSATION
