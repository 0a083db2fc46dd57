"""Waiting that no verdict names never stands beside "Nothing to do"."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.causes import NO_ACCUSATION, Bottleneck
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.patience import FIRST_ANSWERS, FIRST_REQUESTS
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.verdict import judge
from tests.unit.equal_packets import MS, US, measured

SECOND = 1000 * MS
QUICK = measured(300, rx_socket=20 * US, tx_stack=10 * US)
QUIET = ("Nothing to do", "Wait for more traffic")


def hung(kind: str, count: int, oldest_ns: int) -> dict[str, Pending]:
    return {kind: Pending(count, count, oldest_ns=oldest_ns, waiting_ns=count * oldest_ns)}


@pytest.mark.parametrize(
    ("kind", "answers", "line", "next_step"),
    [
        (
            FIRST_ANSWERS,
            measured(300, peer_response=100 * US),
            "12 requests on connections without any answer so far, the oldest for 8.55s",
            "Ask the server's side for handlers that do not answer",
        ),
        (
            FIRST_REQUESTS,
            measured(300, app_response=100 * US),
            "12 requests in service on connections without any answer so far, the oldest for 8.55s",
            "list the system calls",
        ),
    ],
)
@pytest.mark.parametrize("packets", [QUICK, measured(36, rx_socket=20 * US)])
def test_several_first_requests_that_hang_are_said(
    kind: str, answers: Measurement, line: str, next_step: str, packets: Measurement
) -> None:
    """A connection for each request: the answered ones are closed, the others hang."""
    window = packets + answers
    verdict = judge(replace(window, pending=hung(kind, 12, 8550 * MS)))
    assert verdict.bottleneck in NO_ACCUSATION
    assert line in verdict.evidence
    assert next_step in verdict.next_step
    assert judge(replace(window, pending=hung(kind, 1, 60 * SECOND))) == judge(window)
    assert judge(replace(window, pending=hung(kind, 12, 2900 * MS))) == judge(window)


@given(
    st.sampled_from([FIRST_ANSWERS, FIRST_REQUESTS, "unacceptedConnections"]),
    st.integers(2, 10_000),
    st.integers(3 * SECOND, 600 * SECOND),
    st.sampled_from([QUICK, measured(36, rx_socket=20 * US), Measurement()]),
    st.booleans(),
)
def test_several_old_requests_are_never_nothing_to_do(
    kind: str, count: int, oldest_ns: int, packets: Measurement, are_others_answered: bool
) -> None:
    answers = measured(300, peer_response=100 * US, app_response=100 * US)
    window = packets + answers if are_others_answered else packets
    verdict = judge(replace(window, pending=hung(kind, count, oldest_ns)))
    assert not verdict.next_step.startswith(QUIET)


def test_an_objective_allows_first_answers_that_are_as_late() -> None:
    answers = QUICK + measured(300, peer_response=100 * US)
    window = replace(answers, pending=hung(FIRST_ANSWERS, 12, 8 * SECOND))
    polls = Objective("peer.response", 99, 30 * SECOND)
    assert judge(window, objectives=[polls]).next_step.startswith("Nothing to do")


def test_waits_of_few_packets_without_a_dominant_cause_are_said() -> None:
    waits = {
        **hung("unacceptedConnections", 8, 5 * SECOND),
        **hung("unansweredConnects", 8, 4500 * MS),
        **hung("unacknowledgedRetransmits", 8, 4 * SECOND),
    }
    verdict = judge(replace(measured(36, rx_socket=20 * US), pending=waits))
    assert verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    assert "waiting: AcceptQueue 40s, ConnectFailures 36s, PacketLoss 32s" in verdict.evidence
    assert verdict.next_step.startswith("No cause holds 40 %")


@pytest.mark.parametrize("packets", [QUICK, measured(36, rx_socket=20 * US)])
def test_datagrams_without_a_reply_to_any_port_are_said(packets: Measurement) -> None:
    window = packets + measured(140, udp_response=60 * US)
    verdict = judge(replace(window, pending=hung("unansweredQueries", 12, 7460 * MS)))
    assert verdict.bottleneck in NO_ACCUSATION
    assert "12 unanswered queries, the oldest for 7.46s" in verdict.evidence
    assert verdict.next_step.startswith("Datagrams to peers that reply have no reply")
    assert judge(replace(window, pending=hung("unansweredQueries", 4, 7 * SECOND))) == judge(window)
    assert judge(replace(window, pending=hung("unansweredQueries", 12, 900 * MS))) == judge(window)
