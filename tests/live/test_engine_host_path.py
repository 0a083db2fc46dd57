"""rx.host and tx.host: a long way through the node, against the kernel's own timestamps."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    RX_PARTS,
    SERVER,
    TX_PARTS,
    account_for,
    assert_is_there_alone,
    watch_on_host,
)
from tests.live.netfilter import take_time
from tests.live.pods import SLOW_LAST_DEVICE, Namespace, Pod, pods_on_bridge, pods_on_routes
from tests.live.sockets import Connection, connection, wait_for_bytes
from tests.live.stamped import DATAGRAMS, RECEIVE_STAMPS, SEND_STAMPS, stamped
from tests.live.taps import on_the_servers_device, tap, with_a_ring
from tests.live.targets import until
from tests.live.traffic import SO_TIMESTAMPING, stamps
from tests.live.truth import BUCKET, Durations

Start = Callable[..., KernelEngine]
SEGMENTS, SEGMENT_BYTES = 40, 1000
MILLISECOND_NS = 1_000_000

pytestmark = pytest.mark.shared_programs


@contextmanager
def routed() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host that routes between a (client, server) pair."""
    with pods_on_routes(2) as (host, (client, server)):
        yield host, client, server


@contextmanager
def filtering_bridge() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host whose bridge shows netfilter what passes between a (client, server) pair."""
    with pods_on_bridge(2) as (host, (client, server)):
        host.execute("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        yield host, client, server


Way = Callable[[], AbstractContextManager[tuple[Namespace, Pod, Pod]]]
Tap = Callable[[Namespace], AbstractContextManager[object]]


async def measure_a_long_chain(
    start: Start, way: Way, watched_by: Tap = nullcontext
) -> tuple[Mapping[int, Measurement], Durations]:
    """What both ends measured, and how long the kernel had the datagrams."""
    with (
        way() as (host, client, server),
        stamped(client, server) as datagrams,
        watched_by(host),
    ):
        take_time(host, f"ip daddr {server.address}")
        engine = await watch_on_host(start, host, client, server)
        took = datagrams.send_one_by_one()
        return engine.read(), took


@pytest.mark.parametrize("way", [routed, filtering_bridge])
async def test_a_long_netfilter_chain_is_found_on_the_hosts_side_and_nowhere_else(
    start_engine: Start, way: Way
) -> None:
    measured, took = await measure_a_long_chain(start_engine, way)
    for slot, module, parts in ((SERVER, "rx", RX_PARTS), (CLIENT, "tx", TX_PARTS)):
        stage = f"{module}.host"
        assert account_for(measured[slot], stage) == (DATAGRAMS, 0)
        took.assert_are_in(measured[slot].stage(stage).histogram)
        assert_is_there_alone(measured[slot], stage, parts)


@pytest.mark.parametrize(
    ("way", "watched_by"),
    [
        pytest.param(routed, tap, id="routed, any device"),
        pytest.param(filtering_bridge, partial(tap, prepare=with_a_ring), id="bridged, a ring"),
        pytest.param(
            filtering_bridge, partial(tap, prepare=on_the_servers_device), id="bridged, one device"
        ),
    ],
)
async def test_a_tap_on_the_host_takes_nothing_from_the_hosts_part(
    start_engine: Start, way: Way, watched_by: Tap
) -> None:
    measured, took = await measure_a_long_chain(start_engine, way, watched_by)
    assert account_for(measured[SERVER], "rx.host") == (DATAGRAMS, 0)
    took.assert_are_in(measured[SERVER].stage("rx.host").histogram)
    assert measured[SERVER].stage("rx.host").histogram.min_ns > MILLISECOND_NS


def send_stamped(both: Connection) -> tuple[list[int], list[int]]:
    """A segment, until it is read: when it left by its driver, and when it arrived."""
    both.client.send(b"s" * SEGMENT_BYTES)
    wait_for_bytes(both.server, SEGMENT_BYTES)
    _, arrived, *_ = both.server.recvmsg(SEGMENT_BYTES, 512)
    _, left, *_ = both.client.recvmsg(64, 512, socket.MSG_ERRQUEUE)
    return stamps(left), stamps(arrived)


@pytest.mark.parametrize("version", [4, 6])
async def test_segments_that_a_tap_has_seen_keep_their_time_on_the_host(
    start_engine: Start, version: int
) -> None:
    took_ns = []
    with filtering_bridge() as (host, client, server):
        host.execute("sysctl", "-qw", "net.bridge.bridge-nf-call-ip6tables=1")
        address = server.address if version == 4 else server.address6
        with connection(client.namespace, server.namespace, address) as both, tap(host):
            both.server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RECEIVE_STAMPS)
            both.client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SEND_STAMPS)
            until(lambda: bool(send_stamped(both)[1]), "stamps of what arrives")
            host.execute(*SLOW_LAST_DEVICE)
            engine = await watch_on_host(start_engine, host, client, server)
            for _ in range(SEGMENTS):
                (left_ns,), (arrived_ns,) = send_stamped(both)
                took_ns.append(arrived_ns - left_ns)
        received = engine.read()[SERVER]
    held = received.stage("rx.host").histogram
    # what a softirq receives that interrupts a thread hidden from tracers, is hidden as well
    assert SEGMENTS * 0.9 <= held.count <= SEGMENTS
    assert 0.8 * sum(took_ns) < held.sum_ns < sum(took_ns) * BUCKET
    assert held.max_ns > MILLISECOND_NS


@pytest.mark.thorough
@pytest.mark.parametrize("way", [routed, filtering_bridge])
async def test_a_long_netfilter_chain_is_the_verdict_where_the_readers_are_in_time(
    start_engine: Start, way: Way
) -> None:
    measured, _ = await measure_a_long_chain(start_engine, way)
    for slot in (CLIENT, SERVER):
        assert judge(measured[slot]).bottleneck is Bottleneck.HOST_PATH
