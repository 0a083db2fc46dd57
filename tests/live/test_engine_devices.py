"""tx over devices that hand a packet on: where its path ends, and what waits on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import MOST_HIDDEN
from tests.live.measuring import (
    CLIENT,
    account_for,
    assert_all_left,
    assert_parts_add_up,
    count,
    watch_on_host,
)
from tests.live.pods import Namespace, Pod, host_namespace, made_pod, namespace, run
from tests.live.sockets import PORT, connection, read_all, sent_again, udp_socket
from tests.live.targets import until
from tests.live.traffic import SO_TIMESTAMPING, SOF_RX_SOFTWARE, SOF_SOFTWARE, stamps
from tests.live.truth import Durations, Moment

Start = Callable[..., KernelEngine]
BURSTS, BURST = 20, 5
# Of 100 events of a timer, with one in 90 hidden: more than these, once in 100,000 runs.
HIDDEN = 8 * MOST_HIDDEN
MILLISECOND_NS = 1_000_000
# A datagram of 1,000 bytes takes 4 ms, and what is saved up lasts for one.
SLOW = ("root", "tbf", "rate", "2mbit", "burst", "1600", "limit", "100000")
# As the CNI plugin "bandwidth" does for kubernetes.io/egress-bandwidth.
FAST = ("root", "tbf", "rate", "100mbit", "burst", "20000", "limit", "100000")


def monotonic_ns(realtime_ns: int) -> int:
    """A moment of the kernel's stamps by the clock that the test reads."""
    return realtime_ns - (time.time_ns() - time.monotonic_ns())


def limit_egress(host: Namespace, device: str) -> None:
    """What a pod sends by this device goes through a queue on an ifb device first."""
    host.ip("link", "add", "ifb0", "type", "ifb")
    host.ip("link", "set", "ifb0", "up")
    host.execute("tc", "qdisc", "add", "dev", "ifb0", *FAST)
    host.execute("tc", "qdisc", "add", "dev", device, "ingress")
    host.execute(
        *("tc", "filter", "add", "dev", device, "parent", "ffff:", "protocol", "all"),
        *("u32", "match", "u32", "0", "0"),
        *("action", "mirred", "egress", "redirect", "dev", "ifb0"),
    )


@contextmanager
def datagrams(client: Namespace, server: Namespace, address: str) -> Iterator[Callable[..., bool]]:
    """Sends a burst and reads it; arrivals are stamped."""
    with udp_socket(server, address, PORT) as reading, udp_socket(client) as sending:
        reading.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, SOF_RX_SOFTWARE | SOF_SOFTWARE)

        def send(took: Durations | None = None) -> bool:
            sent = [
                Moment.of(lambda: sending.sendto(b"d" * 1000, (address, PORT)))
                for _ in range(BURST)
            ]
            is_stamped = True
            for began in sent:
                _, ancillary, *_ = reading.recvmsg(1000, 512)
                for stamp_ns in map(monotonic_ns, stamps(ancillary)):
                    if took is not None:
                        took.add(began, Moment(stamp_ns, stamp_ns))
                is_stamped = is_stamped and bool(stamps(ancillary))
            return is_stamped

        until(send, "stamps of what arrives")
        yield send


def assert_totals_are_true(measured: Measurement, took: Durations) -> None:
    """All but a few: what a queue's timer sends is hidden where it interrupts a hidden thread."""
    samples, _ = account_for(measured, "tx.total")
    assert BURSTS * BURST - HIDDEN <= samples <= BURSTS * BURST
    if samples == BURSTS * BURST:
        took.assert_are_in(measured.stage("tx.total").histogram)
    assert measured.stage("tx.qdisc").histogram.percentile(50) > MILLISECOND_NS
    assert_parts_add_up(measured, "tx")


def taken(engine: KernelEngine) -> Measurement:
    return engine.read().get(CLIENT, NOTHING)


async def test_a_queue_behind_an_ifb_device_is_found_on_the_last_device(
    start_engine: Start, bridged: tuple[Namespace, Pod, Pod]
) -> None:
    host, client, server = bridged
    took = Durations()
    with datagrams(client.namespace, server.namespace, server.address) as send:
        limit_egress(host, "veth0")
        host.execute("tc", "qdisc", "add", "dev", "veth1", *SLOW)
        engine = await watch_on_host(start_engine, host, client)
        for _ in range(BURSTS):
            send(took)
        measured = taken(engine)
    assert_totals_are_true(measured, took)
    assert measured.stage("tx.host").histogram.min_ns < MILLISECOND_NS


@contextmanager
def macvlan_pod() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host, a pod with a macvlan device on one of the host's, and a pod behind that."""
    with ExitStack() as stack:
        host = stack.enter_context(host_namespace())
        inside, beyond = (stack.enter_context(namespace(role)) for role in ("pod", "beyond"))
        run(
            *("ip", "-n", host.name, "link", "add", "parent", "type", "veth"),
            *("peer", "name", "eth0", "netns", beyond.name),
        )
        host.ip("link", "set", "parent", "up")
        host.ip("link", "add", "link", "parent", "name", "child", "type", "macvlan")
        host.ip("link", "set", "child", "netns", inside.name, "name", "eth0")
        pods = [made_pod(stack, each, index) for index, each in enumerate((inside, beyond))]
        yield host, pods[0], pods[1]


async def test_a_macvlan_pod_is_followed_to_the_device_under_it(start_engine: Start) -> None:
    took = Durations()
    with (
        macvlan_pod() as (host, client, server),
        datagrams(client.namespace, server.namespace, server.address) as send,
    ):
        host.execute("tc", "qdisc", "add", "dev", "parent", *SLOW)
        engine = await watch_on_host(start_engine, host, client)
        for _ in range(BURSTS):
            send(took)
        measured = taken(engine)
        assert_totals_are_true(measured, took)
        assert count(measured, "tx.host") == count(measured, "tx.total")


async def test_segments_of_a_macvlan_pod_have_all_their_stages(start_engine: Start) -> None:
    with macvlan_pod() as (host, client, server):
        engine = await watch_on_host(start_engine, host, client)
        with connection(client.namespace, server.namespace, server.address) as both:
            for _ in range(100):
                both.client.sendall(b"q")
                read_all(both.server, 1)
        measured = taken(engine)
        again = sent_again(client.namespace)
    assert account_for(measured, "tx.socket") == (100, 0)
    for stage in ("tx.stack", "tx.host", "tx.qdisc", "tx.total"):
        assert_all_left(measured, stage, 100, again)
    assert_parts_add_up(measured, "tx")
