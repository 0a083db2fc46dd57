"""Packets one by one, against what the programs that sent and read them say."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

import pytest

from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe.domain.stages import BY_NAME, Module
from latencyprobe_agent.kernel.contract import SocketFilter, TraceSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import MOST_HIDDEN
from tests.live.measuring import CLIENT, SERVER, measure, median, sent_counts
from tests.live.pods import Namespace, Pod
from tests.live.sockets import connection, everything_in, read_all, udp_socket
from tests.live.truth import BUCKET

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
ALL = frozenset(Module)
BOTH = frozenset({CLIENT, SERVER})
EVERYTHING = {"rx.total": 0, "tx.total": 0}
PATIENCE_SECONDS = 10
MS = 1_000_000

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


async def tracing(
    start: Start,
    client: Pod,
    server: Pod,
    limits_ns: dict[str, int],
    *,
    slots: frozenset[int] = BOTH,
    per_second: int = 0,
    **options: object,
) -> KernelEngine:
    """An engine that tells of the packets of both pods."""
    engine = start(**options)
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    engine.trace(TraceSpec(limits_ns, slots, per_second))
    await engine.use(ALL, tracing=True)
    return engine


async def end(engine: KernelEngine) -> list[TracedPacket]:
    """End the trace; the packets that were told of, all of them."""
    engine.trace(None)
    told: list[TracedPacket] = []
    while packets := await engine.traced():
        told.extend(packets)
    return told


def received(packets: Iterable[TracedPacket], port: int = 7000) -> list[TracedPacket]:
    """What arrived at this port."""
    return [p for p in packets if p.total == "rx.total" and p.local and p.local.port == port]


def assert_parts_add_up(packets: Iterable[TracedPacket]) -> None:
    for packet in packets:
        parts = [ns for name, ns in packet.stages_ns.items() if BY_NAME[name].total == packet.total]
        assert sum(parts) == packet.stages_ns[packet.total], packet


@pytest.mark.parametrize(
    ("typed", "family", "protocol"),  # every pair of two
    [
        pytest.param(True, "IPv4", "tcp", id="tp_btf-IPv4-tcp"),
        pytest.param(True, "IPv6", "udp", id="tp_btf-IPv6-udp"),
        pytest.param(False, "IPv4", "udp", id="raw_tp-IPv4-udp"),
        pytest.param(False, "IPv6", "tcp", id="raw_tp-IPv6-tcp"),
    ],
)
async def test_every_packet_that_a_sleeping_reader_kept_waiting_is_reported(
    start_engine: Start, pair: Pair, protocol: str, family: str, typed: bool
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, {"rx.socket": 2 * MS}, typed=typed)
    address = server.address if family == "IPv4" else server.address6
    source = client.address if family == "IPv4" else client.address6
    options = ("--protocol", protocol, "--read-delay-ms", "5")
    _, account = await measure(engine, client, server, 50, *options, address=address)
    everything = await end(engine)
    assert_parts_add_up(everything)
    assert engine.trace_counts == TraceCounts(reported=len(everything))
    told = received(everything)  # a client that is held up is told of as well
    # The reader's own account begins a little earlier, and ends a little later. A client that is
    # held up itself asks while the reader already sleeps. The first packet may come before the
    # kernel has begun to stamp.
    waits_ns = account["waits_ns"]
    assert sum(ns > 3 * MS for ns in waits_ns) <= len(told)
    assert len(told) <= sum(ns >= 2 * MS for ns in waits_ns) + 1
    assert len(told) > 25
    for packet in told:
        assert packet.stages_ns["rx.socket"] >= 2 * MS
        assert packet.protocol == protocol.upper()
        assert packet.local is not None
        assert packet.remote is not None
        assert (str(packet.local.address), str(packet.remote.address)) == (address, source)
        assert packet.user is not None
        assert packet.user.command.startswith("python")
    waits = [packet.stages_ns["rx.socket"] for packet in told]
    assert median(waits) == pytest.approx(median(waits_ns), rel=BUCKET - 1)


@pytest.mark.every_kernel
async def test_every_packet_of_both_ends_is_reported_when_the_limit_is_zero(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    engine = await tracing(start_engine, client, server, EVERYTHING, host_netns=host.inode)
    measured, _ = await measure(engine, client, server, 300)
    told = await end(engine)
    assert len(told) in sent_counts(4 * 300, *measured.values())
    assert_parts_add_up(told)
    assert all("rx.host" in p.stages_ns or "tx.host" in p.stages_ns for p in told)
    assert [p.ended_unix_ns for p in received(told)] == sorted(
        p.ended_unix_ns for p in received(told)
    )


@pytest.mark.every_kernel
async def test_a_packet_is_reported_with_the_process_that_read_or_sent_it(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    serving = server.start("server", server.address, "7000", "20")
    asking = client.start("client", server.address, "7000", "20")
    try:
        asking.go()
        serving.result()
        asking.result()
    finally:
        serving.stop()
        asking.stop()
    told = await end(engine)
    users = {
        (p.total, p.local.port == 7000, p.user.pid)
        for p in told
        if p.local is not None and p.user is not None
    }
    assert users == {
        (total, is_server, process.pid)
        for total in ("rx.total", "tx.total")
        for is_server, process in ((True, serving), (False, asking))
    }


async def test_an_ipv4_peer_of_an_ipv6_socket_is_shown_by_its_ipv4_address(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    with connection(client.namespace, server.namespace, "::", connect_to=server.address) as both:
        both.client.sendall(b"q")
        read_all(both.server, 1)
    told = received(await end(engine))
    assert [(str(p.local), str(p.remote.address)) for p in told if p.remote is not None] == [
        (f"{server.address}:7000", client.address)
    ]


@pytest.mark.every_kernel
async def test_a_datagrams_ends_are_its_own_not_its_sockets(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    # Neither socket is connected, nor bound to one address.
    with (
        udp_socket(server.namespace, "0.0.0.0", 7000) as reader,
        udp_socket(client.namespace, "0.0.0.0", 7001) as sender,
    ):
        sender.sendto(b"q", (server.address, 7000))
        reader.recv(64)
    sent, read = sorted(await end(engine), key=lambda packet: packet.total == "rx.total")
    near, far = f"{client.address}:7001", f"{server.address}:7000"
    assert (str(sent.local), str(sent.remote)) == (near, far)
    assert (str(read.local), str(read.remote)) == (far, near)


async def test_only_packets_that_reach_a_limit_are_reported(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, {"rx.total": 3 * MS, "tx.total": 3 * MS})
    _, account = await measure(engine, client, server, 40, "--read-delay-ms", "5")
    await measure(engine, client, server, 40, "--gap-ms", "1")
    told = await end(engine)
    # a client that is held up itself asks while the reader already sleeps
    kept_waiting = sum(ns > 4 * MS for ns in account["waits_ns"])
    assert len(received(told)) >= kept_waiting - MOST_HIDDEN > 20
    assert all(packet.stages_ns[packet.total] >= 3 * MS for packet in told)


async def test_only_the_slots_that_are_traced_are_reported(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING, slots=frozenset({SERVER}))
    measured, _ = await measure(engine, client, server, 30)
    told = await end(engine)
    assert len(told) in sent_counts(60, measured[SERVER])
    assert {p.local.port for p in told if p.local is not None} == {7000}
    assert measured[CLIENT].stage("rx.total").histogram.count == 30


async def test_a_packet_of_several_slots_is_reported_once(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = start_engine()
    inodes = everything_in(server).netns
    specs = {
        slot: server.spec(SocketFilter(frozenset({7000, other})))
        for slot, other in enumerate((1, 2, 3, 4))
    }
    engine.assign(specs)
    assert all(spec.netns == inodes for spec in specs.values())
    engine.trace(TraceSpec(EVERYTHING, frozenset({1, 2, 3})))
    await engine.use(ALL, tracing=True)
    measured, _ = await measure(engine, client, server, 30)
    assert len(await end(engine)) in sent_counts(60, measured[1])


async def test_a_flood_is_limited_and_every_packet_accounted_for(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING, per_second=100)
    measured, _ = await measure(engine, client, server, 3000)
    told = await end(engine)
    counts = engine.trace_counts
    assert counts.reported == len(told)
    # A run of so many packets lasts a few seconds at most; two CPUs may tell of one too many.
    assert 100 <= counts.reported < 2000
    assert counts.limited > 0
    assert counts.lost == 0
    assert counts.seen in sent_counts(4 * 3000, *measured.values())
    assert counts.seen == sum(
        measured[slot].stage(total).histogram.count for slot in BOTH for total in EVERYTHING
    )


async def test_a_ring_without_a_reader_loses_and_counts(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    measured, _ = await measure(engine, client, server, 4000)
    told = await end(engine)
    counts = engine.trace_counts
    assert counts.reported == len(told) > 1000
    assert counts.lost > 0
    assert counts.seen in sent_counts(4 * 4000, *measured.values())
    assert_parts_add_up(told)


@pytest.mark.own_build
async def test_a_trace_goes_on_over_a_change_of_modules_and_ends_with_its_object(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    with connection(client.namespace, server.namespace, server.address) as both:
        both.client.sendall(b"q")
        read_all(both.server, 1)
        await engine.use(frozenset({Module.RX}), tracing=True)
        both.client.sendall(b"q")
        read_all(both.server, 1)
        waiting = asyncio.create_task(_all(engine))
        await engine.use(frozenset({Module.RX}))
        both.client.sendall(b"q")
        read_all(both.server, 1)
    engine.trace(None)
    told = await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    assert [p.total for p in told] == ["tx.total", "rx.total", "rx.total"]
    assert engine.trace_counts == TraceCounts(reported=3)
    measured = engine.read()
    assert measured[SERVER].stage("rx.total").histogram.count == 3


async def _all(engine: KernelEngine) -> list[TracedPacket]:
    told: list[TracedPacket] = []
    while packets := await engine.traced():
        told.extend(packets)
    return told


async def test_a_reader_that_waits_for_packets_is_woken_by_the_first(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    waiting = asyncio.create_task(engine.traced())
    with connection(client.namespace, server.namespace, server.address) as both:
        await asyncio.sleep(0)
        assert not waiting.done()
        both.client.sendall(b"q")
        read_all(both.server, 1)
        (packet, *_) = await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    assert packet.total == "tx.total"
    assert packet.user is not None
    assert packet.user.pid == os.getpid()


@pytest.mark.own_build
async def test_without_a_trace_nothing_of_it_is_in_the_kernel(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await tracing(start_engine, client, server, EVERYTHING)
    traced = engine._object
    assert traced is not None
    assert traced.memories.ring is not None
    traced_maps = set(traced.maps.descriptors)
    await engine.use(ALL)
    untraced = engine._object
    assert untraced is not None
    assert untraced.memories.ring is None
    assert "trace_ring" in traced_maps
    assert "trace_ring" not in untraced.maps.descriptors
