"""The layout of bpf/include/trace.h, as the agent reads it."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from latencyprobe.domain.packets import Endpoint, User
from latencyprobe.domain.stages import INDEX, PACKET_STAGES
from latencyprobe_agent.kernel.abi import NR_PACKET_STAGES
from latencyprobe_agent.kernel.build.source import compose
from latencyprobe_agent.kernel.runtime.ring import decode_event

LOCAL, REMOTE = ip_address("2001:db8::1"), ip_address("2001:db8::2")


def event(
    *stages_ns: int,
    tgid: int = 42,
    family: int = 10,
    local: bytes = LOCAL.packed,
    owners: int = 0,
) -> bytes:
    """As the kernel writes it, with durations from the table's first stage on."""
    stages = [ns + 1 for ns in stages_ns]
    stages += [0] * (NR_PACKET_STAGES - len(stages))
    return struct.pack(
        f"=QII16s16s16sHHHHQQ{NR_PACKET_STAGES}Q",
        *(1000, tgid, 43, b"server\0garbage"),
        *(local.ljust(16, b"\xff"), REMOTE.packed, 7000, 40752, family, 2, 5, owners),
        *stages,
    )


def test_an_event_is_a_packet_with_the_wall_clocks_time() -> None:
    packet = decode_event(event(0, 7), offset_ns=10**18)
    assert packet.ended_unix_ns == 10**18 + 1000
    assert packet.user == User(42, 43, "server")
    assert (packet.cpu, packet.protocol) == (5, "UDP")
    assert (packet.local, packet.remote) == (Endpoint(LOCAL, 7000), Endpoint(REMOTE, 40752))
    # A duration of 0 is one; a stage that it had not is none.
    assert packet.stages_ns == {PACKET_STAGES[0].name: 0, PACKET_STAGES[1].name: 7}


def test_fields_that_the_kernel_side_could_not_know_are_none() -> None:
    packet = decode_event(event(1, tgid=0, family=0), offset_ns=0)
    assert (packet.user, packet.local, packet.remote) == (None, None, None)


def test_an_ipv4_address_is_its_first_four_bytes_alone() -> None:
    packet = decode_event(event(1, family=2, local=bytes([198, 51, 100, 1])), offset_ns=0)
    assert str(packet.local) == "198.51.100.1:7000"


def test_a_packet_has_the_slots_that_it_counted_in() -> None:
    assert decode_event(event(1), offset_ns=0).slots == frozenset()
    assert decode_event(event(1, owners=0x0001), offset_ns=0).slots == {0}
    assert decode_event(event(1, owners=0x0200_0006_0001), offset_ns=0).slots == {0, 5, 511}


def test_every_stage_of_a_packet_has_room_in_its_event() -> None:
    assert all(INDEX[stage.name] < NR_PACKET_STAGES for stage in PACKET_STAGES)


def test_the_source_has_the_rings_maps_only_with_tracing() -> None:
    options = {"from_btf": True, "typed": True}
    assert "#define TRACE 0\n" in compose((), **options)  # type: ignore[arg-type]
    assert "#define TRACE 1\n" in compose((), **options, trace=True)  # type: ignore[arg-type]
