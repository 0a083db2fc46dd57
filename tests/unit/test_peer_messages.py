"""Peers in messages: they arrive as they were sent, and are checked."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given

from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import (
    FIRST_ANSWERS,
    MAX_REPORTED_PEERS,
    MISSING_ANSWERS,
    Peer,
)
from latencyprobe.domain.pending import LONGEST_PENDING_NS
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.peers import MAX_PEERS, peers_from_proto, peers_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from tests.unit.peer_figures import some_peers


@given(some_peers)
def test_they_arrive_as_they_were_sent(sent: tuple[Peer, ...]) -> None:
    message = pb.PodReport(peers=peers_to_proto(sent))
    received = pb.PodReport.FromString(message.SerializeToString())
    assert peers_from_proto(received.peers, "peers") == sent


def message(**changes: object) -> pb.Peer:
    fields: dict[str, object] = {
        "endpoint": pb.Endpoint(address=b"\x0a\0\0\x07", port=7000),
        "kind": MISSING_ANSWERS,
        "count": 1,
    }
    return pb.Peer(**{**fields, **changes})  # type: ignore[arg-type]


def test_sums_beyond_the_largest_number_are_sent_as_it() -> None:
    peer = Peer(Endpoint(ip_address("10.0.0.7"), 1), FIRST_ANSWERS, 2**60, 2**60, 2**60)
    (sent,) = peers_to_proto([peer])
    assert (sent.count, sent.waiting_ns) == (2**53 - 1, 2**53 - 1)
    assert sent.oldest_ns == LONGEST_PENDING_NS


def test_kinds_of_a_newer_agent_are_left_out() -> None:
    assert peers_from_proto([message(kind="gremlins\x1b", endpoint=pb.Endpoint())], "peers") == ()


def test_more_than_a_report_shows_are_left_out() -> None:
    ports = range(MAX_REPORTED_PEERS + 1)
    sent = [message(endpoint=pb.Endpoint(address=bytes(4), port=port)) for port in ports]
    received = peers_from_proto(sent, "peers")
    assert [peer.address.port for peer in received] == list(ports)[:-1]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([message()] * (MAX_PEERS + 1), "peers: 65 entries, but at most 64"),
        ([message()] * 2, "peers: a peer is repeated"),
        (
            [message(), message(endpoint=pb.Endpoint(address=b"\x1b[2J", port=70_000))],
            r"peers\[1\].endpoint: invalid address .* port 70000",
        ),
        (
            [message(endpoint=pb.Endpoint(address=b"evil.example"))],
            r"peers\[0\].endpoint: invalid address",
        ),
        ([message(endpoint=None)], r"peers\[0\].endpoint: invalid address b'' port 0"),
        ([message(count=2**53)], r"peers\[0\]: .* must be below 2\^53"),
        ([message(waiting_ns=2**64 - 1)], r"peers\[0\]: .* too large"),
        (
            [message(oldest_ns=LONGEST_PENDING_NS + 1)],
            r"peers\[0\].oldest_ns: .* at most 600000000000",
        ),
    ],
)
def test_impossible_peers_are_refused(messages: list[pb.Peer], problem: str) -> None:
    with pytest.raises(CorruptMessageError, match=problem):
        peers_from_proto(messages, "peers")
