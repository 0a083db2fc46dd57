"""What is pending adds up over places, is checked on arrival, and reads as a sentence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.measurement import Measurement, of_one_pod
from latencyprobe.domain.pending import (
    LONGEST_PENDING_NS,
    PENDING_BY_NAME,
    Pending,
    describe,
    joint_pending,
    pending_of,
)
from latencyprobe.domain.report import report_on
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import DEFAULT_MODULES, PENDING, Module
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.pending import MAX_PENDING, pending_from_proto, pending_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from tests.unit.pending_figures import pending_by_kind, pendings

HUNG = Pending(200, 20, 40_000, 6_100_000_000, 900_000_000_000)


@given(*[st.none() | pending_by_kind] * 3)
def test_waiting_at_several_places_adds_up_in_any_order(
    a: Mapping[str, Pending] | None,
    b: Mapping[str, Pending] | None,
    c: Mapping[str, Pending] | None,
) -> None:
    assert joint_pending(a, b) == joint_pending(b, a)
    assert joint_pending(joint_pending(a, b), c) == joint_pending(a, joint_pending(b, c))
    assert joint_pending(None, a) == a
    assert joint_pending({}, a) == (a or {})


@given(pendings, pendings)
def test_a_sum_is_as_old_as_its_oldest(a: Pending, b: Pending) -> None:
    both = a + b
    assert both.oldest_ns == max(a.oldest_ns, b.oldest_ns)
    assert (both.count, both.sockets) == (a.count + b.count, a.sockets + b.sockets)
    assert (both.bytes, both.waiting_ns) == (a.bytes + b.bytes, a.waiting_ns + b.waiting_ns)


def test_containers_of_a_pod_wait_together() -> None:
    one = Measurement(pending={"unreadSegments": Pending(2, 1, 100, 7, 9)})
    other = Measurement(pending={"unreadSegments": Pending(3, 2, 50, 5, 6)})
    assert of_one_pod(one, other).pending == {"unreadSegments": Pending(5, 3, 150, 7, 15)}
    assert of_one_pod(one, Measurement(counters={"rtos": 1})).pending == one.pending


def test_a_negative_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="negative figure"):
        Pending(1, oldest_ns=-1)


def test_only_kinds_of_the_modules_are_kept_in_the_order_of_the_table() -> None:
    found = {"unansweredConnects": Pending(1), "unreadSegments": Pending(1), "other": Pending(1)}
    assert list(pending_of(found, {Module.TCP})) == ["unansweredConnects"]
    assert list(pending_of(found, DEFAULT_MODULES)) == ["unreadSegments", "unansweredConnects"]
    assert pending_of({"unreadSegments": Pending(0)}, DEFAULT_MODULES) == {}


@pytest.mark.parametrize(
    ("kind", "pending", "text"),
    [
        ("unreadSegments", HUNG, "200 unread segments in 20 sockets, the oldest for 6.1s"),
        ("unreadSegments", Pending(1, 1), "1 unread segment"),
        ("unreadSegments", Pending(7, 1), "7 unread segments in 1 socket"),
        ("unansweredRequests", Pending(1, 1, 0, 2 * 10**9), "1 unanswered request for 2s"),
        (
            "unansweredRequests",
            Pending(1234, 1234, 0, LONGEST_PENDING_NS),
            "1,234 unanswered requests, the oldest for at least 600s",
        ),
    ],
)
def test_the_text_has_the_figures_that_are_known(kind: str, pending: Pending, text: str) -> None:
    assert describe(PENDING_BY_NAME[kind], pending) == text


def test_the_report_has_what_is_pending_or_nothing_where_it_cannot_be_read() -> None:
    measured = Measurement(pending={"unreadSegments": HUNG})
    document = document_of(report_on(measured, DEFAULT_MODULES))
    assert document["pending"] == {
        "unreadSegments": {
            "count": 200,
            "sockets": 20,
            "bytes": 40_000,
            "oldestNs": 6_100_000_000,
            "waitingNs": 900_000_000_000,
        }
    }
    assert document_of(report_on(Measurement(), DEFAULT_MODULES))["pending"] == {}
    assert "pending" not in document_of(report_on(measured, DEFAULT_MODULES, uncounted={PENDING}))
    assert "pending" not in document_of(report_on(measured, [Module.IRQ]))


@given(pending_by_kind)
def test_it_arrives_as_it_was_sent(pending: dict[str, Pending]) -> None:
    message = pb.TargetReport(pending=pending_to_proto(pending))
    received = pb.TargetReport.FromString(message.SerializeToString())
    assert pending_from_proto(received.pending, "pending") == pending


def test_a_missing_reading_is_sent_as_nothing() -> None:
    assert pending_to_proto(None) == []


def test_sums_beyond_the_largest_number_are_sent_as_it() -> None:
    (message,) = pending_to_proto({"unsentWrites": Pending(1, 1, 2**60, 0, 2**60)})
    assert (message.bytes, message.waiting_ns) == (2**53 - 1, 2**53 - 1)
    assert pending_from_proto([message], "pending")


def test_kinds_of_a_newer_agent_are_left_out() -> None:
    newer = [pb.Pending(kind="gremlins\x1b", count=1), pb.Pending(kind="unsentWrites", count=1)]
    assert pending_from_proto(newer, "pending") == {"unsentWrites": Pending(1)}
    assert pending_from_proto([pb.Pending(kind="unsentWrites")], "pending") == {}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([pb.Pending(kind="x")] * (MAX_PENDING + 1), r"pending: 65 entries, but at most 64"),
        (
            [pb.Pending(kind="unsentWrites", count=1)] * 2,
            r"pending\[1\].kind: 'unsentWrites' is repeated",
        ),
        ([pb.Pending(kind="unsentWrites", count=2**53)], r"pending\[0\]: .* must be below 2\^53"),
        ([pb.Pending(kind="unsentWrites", waiting_ns=2**64 - 1)], r"pending\[0\]: .* too large"),
        ([pb.Pending(kind="unsentWrites", bytes=2**63)], r"pending\[0\]: .* too large"),
        (
            [pb.Pending(kind="unsentWrites", oldest_ns=LONGEST_PENDING_NS + 1)],
            r"pending\[0\].oldest_ns: .* at most 600000000000",
        ),
    ],
)
def test_impossible_figures_are_refused(messages: list[pb.Pending], problem: str) -> None:
    with pytest.raises(CorruptMessageError, match=problem):
        pending_from_proto(messages, "pending")
