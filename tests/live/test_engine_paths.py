"""The ways between a pod and the world: bridges, routes, tunnels, drops, and the node itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.abi import MOST_RECEIVED_BITS
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.load import loading
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import (
    CLIENT,
    SERVER,
    TX_OF_A_PAIR,
    account_for,
    assert_all_left,
    assert_parts_add_up,
    count,
    measure,
    resent,
    watch_on_host,
)
from tests.live.pods import Namespace, Pod, namespace, pods_on_bridge, pods_on_routes
from tests.live.sockets import (
    PORT,
    connection,
    everything_in,
    exchange,
    group_member,
    read_all,
    send_datagrams,
    sent_again,
    udp_socket,
)
from tests.live.tuns import tun

Start = Callable[..., KernelEngine]
HOST_ADDRESS = "198.51.100.254"
MANY = 400
CHANGE_THE_PAYLOAD = """
table ip mangling {
  chain forward {
    type filter hook forward priority 0;
    udp dport 7000 @th,64,32 set 0x78787878
  }
}
"""
MILLISECOND_NS = 1_000_000

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


@contextmanager
def uplink(pod: Pod, end: Namespace) -> Iterator[str]:
    """A device of the pod's that leads into another namespace; an address behind it."""
    behind = "192.0.2.2"
    pod.namespace.ip(
        *("link", "add", "uplink", "type", "veth", "peer", "name", "downlink", "netns", end.name)
    )
    try:
        end.ip("link", "set", "downlink", "up")
        pod.namespace.ip("link", "set", "uplink", "up")
        pod.namespace.ip("address", "add", "192.0.2.1/30", "dev", "uplink")
        pod.namespace.ip("neigh", "add", behind, "lladdr", "02:00:00:00:00:01", "dev", "uplink")
        yield behind
    finally:
        pod.namespace.ip("link", "delete", "uplink")


@pytest.fixture
def three() -> Iterator[tuple[Namespace, list[Pod]]]:
    """A host with a bridge and three pods on it."""
    with pods_on_bridge(3) as (host, pods):
        yield host, pods


def take(engine: KernelEngine, slot: int) -> Measurement:
    return engine.read().get(slot, NOTHING)


def assert_all_were_sent(measured: Measurement, stage: str, segments: int) -> None:
    assert_all_left(measured, stage, segments, resent(measured))


class Sleepers:
    """A thread on each CPU that sleeps for a millisecond at a time.

    The longest time that one of them slept too long is what the machine may add to any time.
    """

    def __init__(self) -> None:
        self._late_ns: list[int] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._sleep, args=(cpu,)) for cpu in os.sched_getaffinity(0)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    @property
    def late_ns(self) -> int:
        """The longest of these times, until the end."""
        return max(self._late_ns)

    def _sleep(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while not self._is_over.is_set():
            began_ns = time.monotonic_ns()
            time.sleep(0.001)
            took_ns = time.monotonic_ns() - began_ns
            self._late_ns.append(took_ns - MILLISECOND_NS)


async def test_packets_to_a_process_of_the_node_are_unmatched_and_never_samples(
    start_engine: Start, three: tuple[Namespace, list[Pod]]
) -> None:
    host, (client, server, other) = three
    engine = await watch_on_host(start_engine, host, client)
    with connection(client.namespace, host, HOST_ADDRESS) as to_node:
        exchange(to_node, 100)
    send_datagrams(client.namespace, host, HOST_ADDRESS, 100)
    # others get the same addresses of socket buffers
    with connection(other.namespace, server.namespace, server.address) as between_others:
        exchange(between_others, 200)
    send_datagrams(other.namespace, server.namespace, server.address, 200)
    samples, missing = account_for(take(engine, CLIENT), "tx.total")
    assert samples == 0
    assert 100 < missing <= 200  # seen as missing once the address is used again
    (whole,) = (each for each in engine.coverage if each.name == "tx.total")
    assert "a process of the node receives them" in whole.reason
    assert whole.state is CoverageState.ACTIVE


async def test_a_target_in_the_hosts_own_namespace_has_no_host_stage(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, pod = bridged
    server = Pod(host, pod.cgroup, HOST_ADDRESS, "")
    engine = start_engine(host_netns=host.inode)
    engine.assign({SERVER: server.spec()})
    await engine.use(frozenset(DEFAULT_MODULES))
    before = sent_again(host)
    measured, _ = await measure(engine, client, server, 300)
    again = sent_again(host) - before
    of_server = measured[SERVER]
    for stage in ("rx.softirq", "rx.stack", "rx.socket", "rx.total", "tx.socket"):
        assert account_for(of_server, stage) == (300, 0), stage
    for stage in set(TX_OF_A_PAIR) - {"tx.socket"}:
        assert_all_left(of_server, stage, 300, again)
    assert not {"rx.host", "tx.host"} & of_server.stages.keys()
    assert_parts_add_up(of_server, "rx", "tx")


async def test_dropped_packets_are_unmatched_and_never_a_sample(
    start_engine: Start, three: tuple[Namespace, list[Pod]]
) -> None:
    host, (client, server, other) = three
    engine = await watch_on_host(start_engine, host, client)
    host.execute(
        *("tc", "qdisc", "add", "dev", "veth1", "root", "tbf"),
        *("rate", "1mbit", "burst", "2000", "limit", "2000"),
    )
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        for _ in range(500):
            sending.sendto(b"d" * 500, (server.address, PORT))
        host.execute("tc", "qdisc", "delete", "dev", "veth1", "root")
        sending.sendto(b"last", (server.address, PORT))
        arrived = 1
        while reading.recv(1024) != b"last":
            arrived += 1
    send_datagrams(other.namespace, server.namespace, server.address, 300)
    samples, missing = account_for(take(engine, CLIENT), "tx.total")
    assert arrived < 100
    assert samples in counts_of(arrived)  # the queue's timer lets them go
    assert 400 < missing <= 501 - samples


async def test_sums_hold_where_tcp_packets_are_dropped_and_sent_again(
    start_engine: Start, three: tuple[Namespace, list[Pod]]
) -> None:
    host, (client, server, other) = three
    engine = await watch_on_host(start_engine, host, client)
    host.execute(
        *("tc", "qdisc", "add", "dev", "veth1", "root", "tbf"),
        *("rate", "20mbit", "burst", "2000", "limit", "3000"),
    )
    amount = 1 << 18
    with Sleepers() as sleepers:
        with connection(client.namespace, server.namespace, server.address) as both:
            sending = threading.Thread(target=both.client.sendall, args=(bytes(amount),))
            sending.start()
            read_all(both.server, amount)
            sending.join()
        with connection(other.namespace, server.namespace, server.address) as between_others:
            exchange(between_others, 300)
    measured = take(engine, CLIENT)
    samples, missing = account_for(measured, "tx.total")
    assert samples > 50
    assert missing > 10
    # 3,000 bytes at 20 Mbit/s are 1.2 ms: what waits much longer is another packet
    longest_ns = 200 * MILLISECOND_NS + sleepers.late_ns
    assert measured.stage("tx.qdisc").histogram.max_ns < longest_ns
    assert_parts_add_up(measured, "tx")


@pytest.mark.parametrize(
    "filtered",
    [
        pytest.param("0", id="plain bridge"),
        pytest.param("1", id="br_netfilter", marks=pytest.mark.every_kernel),
    ],
)
async def test_a_bridge_is_passed_with_and_without_its_netfilter(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod], filtered: str
) -> None:
    host, client, server = bridged
    host.execute("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={filtered}")
    engine = await watch_on_host(start_engine, host, client, server)
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, 200)
    send_datagrams(client.namespace, server.namespace, server.address, 200)
    measured = engine.read()
    for stage in ("tx.host", "tx.qdisc", "tx.total"):
        assert_all_were_sent(measured[CLIENT], stage, 400)
    for stage in ("rx.softirq", "rx.host", "rx.socket", "rx.total"):
        assert account_for(measured[SERVER], stage) == (400, 0), stage
    (stack,) = (stage for stage in engine.coverage if stage.name == "rx.stack")
    sees_datagrams = stack.state is CoverageState.ACTIVE  # 6.3+
    assert account_for(measured[SERVER], "rx.stack") == (400 if sees_datagrams else 200, 0)
    for measurement in measured.values():
        assert_parts_add_up(measurement, "rx", "tx")


@pytest.mark.every_kernel
async def test_a_routed_host_is_passed_like_a_bridged_one(start_engine: Start) -> None:
    with pods_on_routes(3) as (host, (client, server, other)):
        engine = await watch_on_host(start_engine, host, client, server)
        with connection(client.namespace, server.namespace, server.address) as both:
            exchange(both, 200)
        send_datagrams(client.namespace, server.namespace, server.address, 200)
        with connection(other.namespace, server.namespace, server.address) as from_other:
            exchange(from_other, 50)
    measured = engine.read()
    for stage in ("tx.host", "tx.qdisc", "tx.total"):
        assert_all_were_sent(measured[CLIENT], stage, 400)
    for stage in ("rx.host", "rx.socket", "rx.total"):
        assert account_for(measured[SERVER], stage) == (450, 0), stage
    for measurement in measured.values():
        assert_parts_add_up(measurement, "rx", "tx")


async def test_a_device_on_top_of_another_inside_the_pod_counts_each_packet_once(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    for pod, address in ((client, "192.0.2.1"), (server, "192.0.2.2")):
        pod.namespace.ip("link", "add", "link", "eth0", "name", "top", "type", "macvlan")
        pod.namespace.ip("address", "add", f"{address}/24", "dev", "top")
        pod.namespace.ip("link", "set", "top", "up")
    engine = await watch_on_host(start_engine, host, client, server)
    with connection(client.namespace, server.namespace, "192.0.2.2") as both:
        exchange(both, 200)
    send_datagrams(client.namespace, server.namespace, "192.0.2.2", 200)
    measured = engine.read()
    for stage in ("tx.host", "tx.total"):
        assert_all_were_sent(measured[CLIENT], stage, 400)
    assert account_for(measured[SERVER], "rx.total") == (400, 0)
    assert count(measured[SERVER], "rx.host") == 400


async def test_both_devices_of_a_pod_are_measured(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    for index, pod in enumerate((client, server)):
        pod.namespace.ip(
            *("link", "add", "eth1", "type", "veth"),
            *("peer", "name", f"second{index}", "netns", host.name),
        )
        pod.namespace.ip("address", "add", f"192.0.2.{index + 1}/24", "dev", "eth1")
        pod.namespace.ip("link", "set", "eth1", "up")
        host.ip("link", "set", f"second{index}", "master", "br0", "up")
    engine = await watch_on_host(start_engine, host, client, server)
    for address in (server.address, "192.0.2.2"):
        with connection(client.namespace, server.namespace, address) as both:
            exchange(both, 100)
    measured = engine.read()
    for stage in ("tx.host", "tx.total"):
        assert_all_were_sent(measured[CLIENT], stage, 200)
    assert account_for(measured[SERVER], "rx.total") == (200, 0)
    assert count(measured[SERVER], "rx.host") == 200


async def test_the_loopback_of_a_pod_never_leads_through_the_host(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, _ = bridged
    engine = await watch_on_host(start_engine, host, client)
    for address in ("127.0.0.1", "::1"):
        # the node's own packets leave their traces where ours will be looked for
        with connection(host, host, address) as on_host:
            exchange(on_host, 200)
        send_datagrams(host, host, address, 200)
        with connection(client.namespace, client.namespace, address) as both:
            exchange(both, 200)
        send_datagrams(client.namespace, client.namespace, address, 200)
    measured = take(engine, CLIENT)
    assert sum(account_for(measured, "rx.total")) == sum(account_for(measured, "tx.total")) == 1200
    assert "rx.host" not in measured.stages
    assert "tx.host" not in measured.stages
    assert measured.stage("rx.total").unmatched == 0


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Where the kernel hands out first what was freed last, of sockets and of socket buffers."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_addresses_that_come_again_bring_no_times_of_packets_of_the_host(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod], pair: tuple[Pod, Pod], typed: bool
) -> None:
    host, other, _ = bridged
    engine = start_engine(host_netns=host.inode, typed=typed)
    engine.assign({slot: everything_in(pod) for slot, pod in enumerate(pair)})
    await engine.use(frozenset(DEFAULT_MODULES))
    client, server = pair
    with on_one_cpu():
        for _ in range(500):
            with connection(other.namespace, host, HOST_ADDRESS) as to_host:
                exchange(to_host, 1)
            with connection(client.namespace, server.namespace, server.address) as both:
                exchange(both, 1)
    for measured in engine.read().values():
        assert account_for(measured, "rx.total") == (500, 0)
        assert "rx.host" not in measured.stages


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_pod_behind_a_router_of_its_own_gets_no_times_of_packets_of_the_host(
    start_engine: Start, typed: bool
) -> None:
    with namespace("node") as node, pods_on_routes(2) as (_, (client, server)):
        engine = start_engine(host_netns=node.inode, typed=typed)
        engine.assign({SERVER: everything_in(server)})
        await engine.use(frozenset(DEFAULT_MODULES))
        with (
            on_one_cpu(),
            udp_socket(node, "127.0.0.1", PORT) as on_node,
            udp_socket(server.namespace, server.address, PORT) as reading,
            udp_socket(client.namespace) as sending,
        ):
            for number in range(MANY):
                # every second one as the other is: no datagram has anything of its own
                on_node.sendto(b"d" * (200 + number % 2), on_node.getsockname())
                on_node.recv(1024)
                sending.sendto(b"d" * 200, reading.getsockname())
                reading.recv(1024)
        received = take(engine, SERVER)
    assert account_for(received, "rx.total") == (MANY, 0)
    assert "rx.host" not in received.stages


async def test_packets_of_a_tun_device_get_no_times_of_packets_of_the_host(
    start_engine: Start,
) -> None:
    with namespace("node") as node, tun("pod", "192.0.2.1", "192.0.2.2") as pod:
        engine = start_engine(host_netns=node.inode)
        inode = frozenset({pod.namespace.inode})
        engine.assign({SERVER: SlotSpec(netns_wide=inode, netns=inode)})
        await engine.use(frozenset(DEFAULT_MODULES))
        with (
            on_one_cpu(),
            udp_socket(node, "127.0.0.1", PORT) as on_node,
            udp_socket(pod.namespace, pod.address, PORT) as reading,
            udp_socket(pod.namespace) as sending,
        ):
            # what leaves the device is sent back to it, with its ends exchanged
            for _ in range(MANY):
                on_node.sendto(b"d" * 200, on_node.getsockname())
                on_node.recv(1024)
                sending.sendto(b"d" * 200, (pod.beyond, PORT))
                os.write(pod.descriptor, with_ends_exchanged(pod.take()))
                reading.recv(1024)
        received = take(engine, SERVER)
    assert account_for(received, "rx.total") == (MANY, 0)
    assert "rx.host" not in received.stages


def with_ends_exchanged(packet: bytes) -> bytes:
    """An IPv4 packet as its receiver would send it; no checksum changes."""
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


async def test_a_table_of_packets_for_many_cpus_serves_like_a_small_one(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "received_bits", lambda cpus: MOST_RECEIVED_BITS)
    host, client, server = bridged
    engine = await watch_on_host(start_engine, host, client, server)
    with connection(client.namespace, server.namespace, server.address) as both:
        exchange(both, MANY)
    received = take(engine, SERVER)
    assert account_for(received, "rx.host") == account_for(received, "rx.total") == (MANY, 0)


async def test_a_packet_that_the_host_changes_is_lost_and_has_no_total(
    start_engine: Start,
) -> None:
    with pods_on_routes(2) as (host, (client, server)):
        host.load_rules(CHANGE_THE_PAYLOAD)
        engine = await watch_on_host(start_engine, host, client, server)
        send_datagrams(client.namespace, server.namespace, server.address, 50)
        received = take(engine, SERVER)
    assert account_for(received, "rx.host") == account_for(received, "rx.total") == (0, 50)
    assert not {"rx.stack", "rx.socket"} & received.stages.keys()


async def test_copies_of_a_multicast_have_no_host_stage(
    start_engine: Start, three: tuple[Namespace, list[Pod]]
) -> None:
    host, (one, other, sender) = three
    engine = await watch_on_host(start_engine, host, one, other)
    group = "239.1.1.1"
    for pod in (one, other, sender):
        pod.namespace.ip("route", "add", "239.0.0.0/8", "dev", "eth0")
    with (
        group_member(one.namespace, one.address, group) as reading,
        group_member(other.namespace, other.address, group) as reading_too,
        udp_socket(sender.namespace) as sending,
    ):
        for _ in range(100):
            sending.sendto(b"d", (group, PORT))
            reading.recv(16)
            reading_too.recv(16)
    for measured in engine.read().values():
        assert sum(account_for(measured, "rx.total")) == 100
        # the bridge keeps the original for itself, br_handle_frame_finish(), net/bridge/br_input.c
        assert "rx.host" not in measured.stages


async def test_a_device_is_not_taken_for_the_one_that_was_at_its_address(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    """The kernel's memory of a device that is deleted becomes that of the next."""
    host, client, server = bridged
    engine = await watch_on_host(start_engine, host, client)
    for _ in range(20):
        with uplink(client, host) as beyond, udp_socket(client.namespace) as sending:
            sending.sendto(b"the host has it, and throws it away", (beyond, PORT))
        with uplink(client, server.namespace) as beyond, udp_socket(client.namespace) as sending:
            engine.read()
            sending.sendto(b"at its end", (beyond, PORT))
            assert count(engine.read()[0], "tx.total") == 1
