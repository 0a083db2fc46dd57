"""Packets over the wire: nothing is changed on the way, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.packets import Endpoint, TraceCounts, TracedPacket, User, parts_of_packet
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.packets import (
    counts_from_proto,
    counts_to_proto,
    packet_from_proto,
    packet_to_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from tests.unit.traced_packets import RECEIVED

ENDPOINTS = st.builds(
    Endpoint.of,
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(0, 65535),
)
USERS = st.builds(User, st.integers(1, 1 << 22), st.integers(1, 1 << 22), st.text(max_size=15))
DURATIONS = st.integers(0, 60 * 10**9)


@st.composite
def packets(draw: st.DrawFn) -> TracedPacket:
    total = draw(st.sampled_from(["rx.total", "tx.total"]))
    names = [stage.name for stage in parts_of_packet(total) if draw(st.booleans())]
    return TracedPacket(
        draw(st.integers(0, 2**62)),
        draw(st.none() | USERS),
        draw(st.integers(0, 8191)),
        draw(st.sampled_from(["TCP", "UDP"])),
        draw(st.none() | ENDPOINTS),
        draw(st.none() | ENDPOINTS),
        {name: draw(DURATIONS) for name in [*names, total]},
    )


@given(packets())
def test_a_packet_arrives_as_it_was_sent(packet: TracedPacket) -> None:
    arrived = pb.TracedPacket.FromString(packet_to_proto(packet).SerializeToString())
    assert packet_from_proto(arrived) == packet


def test_counts_arrive_as_they_were_sent() -> None:
    counts = TraceCounts(1, 2, 3)
    message = counts_to_proto(counts, 0.25)
    assert counts_from_proto(message) == counts
    assert message.sampling_ratio == 0.25
    assert counts.seen == 6
    assert counts + counts - counts == counts


def test_a_newer_agents_stages_are_left_out() -> None:
    message = packet_to_proto(RECEIVED)
    message.stages_ns["rx.future"] = 1
    assert packet_from_proto(message) == RECEIVED


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("stages_ns", pb.TracedPacket(stages_ns={"rx.stack": 1})),
        ("stages_ns", pb.TracedPacket(stages_ns={"rx.total": 1, "tx.total": 1})),
        (
            "local",
            pb.TracedPacket(stages_ns={"rx.total": 1}, local=pb.Endpoint(address=b"abc", port=1)),
        ),
        (
            "remote",
            pb.TracedPacket(
                stages_ns={"rx.total": 1}, remote=pb.Endpoint(address=b"abcd", port=70_000)
            ),
        ),
    ],
)
def test_a_packet_that_can_not_be_is_refused_by_its_field(
    field: str, message: pb.TracedPacket
) -> None:
    with pytest.raises(CorruptMessageError) as refused:
        packet_from_proto(message)
    assert refused.value.field == field
