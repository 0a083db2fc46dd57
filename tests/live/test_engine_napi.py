"""How packets come out of NAPI: merged by GRO, in a thread of their own, late by ksoftirqd."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    MILLISECOND_NS,
    NO_VARIABLES,
    SERVER,
    account_for,
    assert_parts_add_up,
    count,
    watch,
    watch_namespace,
)
from tests.live.pods import Pod, namespace
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    connection,
    inside,
    read_all,
    udp_socket,
    wait_for_byte,
)
from tests.live.stamped import RECEIVE_STAMPS
from tests.live.steering import away_from, steer, without_softirqs
from tests.live.targets import until
from tests.live.traffic import SO_TIMESTAMPING, stamps
from tests.live.truth import Durations, Moment
from tests.live.tuns import FarWire, tun

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
SIOCETHTOOL = 0x8946
# linux/ethtool.h
ETHTOOL_GSTRINGS, ETHTOOL_STSO, ETHTOOL_SGRO = 0x1B, 0x1F, 0x2C
ETHTOOL_GSSET_INFO, ETHTOOL_SFEATURES = 0x37, 0x3B
ETH_SS_FEATURES, ETH_GSTRING_LEN = 4, 32
UDP_SEGMENT = 103  # linux/udp.h
SEGMENT_BYTES = 1448
WRITES, BURST = 50, 20
WRITE_BYTES = 20 * SEGMENT_BYTES
REQUESTS, FEW, STEERED = 2000, 100, 40

pytestmark = pytest.mark.unscoped


def receive_by_napi(client: Pod, server: Pod) -> None:
    """What comes without segmentation offload is merged: veth_skb_is_eligible_for_gro()."""
    set_offload(server, ETHTOOL_SGRO, on=True)
    set_offload(client, ETHTOOL_STSO, on=False)


def set_offload(pod: Pod, command: int, *, on: bool) -> None:
    """What `ethtool -K eth0` does."""
    with inside(pod.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        ask(channel, struct.pack("=II", command, on))


def split_bursts(pod: Pod) -> None:
    """What `ethtool -K eth0 tx-udp-segmentation off` does, to the bursts of UDP_SEGMENT."""
    with inside(pod.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        number = feature_names(channel).index("tx-udp-segmentation")
        blocks = [[0, 0] for _ in range(number // 32 + 1)]
        blocks[-1][0] = 1 << number % 32  # to be changed, to 0
        words = (word for block in blocks for word in block)
        ask(channel, struct.pack(f"=II{2 * len(blocks)}I", ETHTOOL_SFEATURES, len(blocks), *words))


def feature_names(channel: socket.socket) -> list[str]:
    """The kernel's names of a device's features, each at its bit."""
    mask = 1 << ETH_SS_FEATURES
    count = struct.unpack_from(
        "=I", ask(channel, struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, mask, 0)), 16
    )[0]
    request = struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count)
    names = ask(channel, request + bytes(count * ETH_GSTRING_LEN))[len(request) :]
    return [
        names[at : at + ETH_GSTRING_LEN].rstrip(b"\0").decode()
        for at in range(0, len(names), ETH_GSTRING_LEN)
    ]


def ask(channel: socket.socket, command: bytes) -> bytes:
    """An ethtool command about eth0, and what it is when the kernel has answered."""
    value = array.array("B", command)
    ioctl(channel, SIOCETHTOOL, struct.pack("16sP16x", b"eth0", value.buffer_info()[0]))
    return value.tobytes()


@contextmanager
def counted_data(pod: Pod) -> Iterator[Callable[[], int]]:
    """How many packets with data IP hands to TCP in the pod, by nftables."""
    for command in (
        "add table ip watch",
        "add chain ip watch input { type filter hook input priority 0; }",
        f"add rule ip watch input tcp dport {PORT} ip length > 100 counter",
    ):
        pod.namespace.execute("nft", command)

    def packets() -> int:
        listing = subprocess.run(
            ["ip", "netns", "exec", pod.namespace.name, "nft", "-j", "list", "ruleset"],
            check=True,
            capture_output=True,
        ).stdout
        (rule,) = [each["rule"] for each in json.loads(listing)["nftables"] if "rule" in each]
        (counter,) = [each["counter"] for each in rule["expr"] if "counter" in each]
        return int(counter["packets"])

    yield packets


@contextmanager
def asked_for_bytes(reading: socket.socket) -> Iterator[None]:
    """FIONREAD without end: each moves the queue to the reader's, first_packet_length()."""
    is_over = threading.Event()

    def ask_for_bytes() -> None:
        waiting = array.array("i", [0])
        while not is_over.is_set():
            ioctl(reading, termios.FIONREAD, waiting)

    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(ask_for_bytes)
        try:
            yield
        finally:
            is_over.set()
            asked.result()


@contextmanager
def storm(cpu: int) -> Iterator[None]:
    """A frame that a bridge's loop never lets go keeps a CPU's softirqs busy.

    Those that go on for 2 ms are left to ksoftirqd: handle_softirqs(), kernel/softirq.c.
    """
    with namespace("loop") as loop:
        loop.ip("link", "add", "br0", "type", "bridge")
        loop.ip("link", "add", "one", "type", "veth", "peer", "name", "other")
        for device in ("one", "other"):
            loop.ip("link", "set", device, "master", "br0", "up")
        loop.ip("address", "add", "192.0.2.1/24", "dev", "br0")
        loop.ip("link", "set", "br0", "up")
        # the neighbour is asked for by broadcast; who receives is the CPU that sends
        ask = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.2', 9))"
        loop.execute("taskset", "--cpu-list", str(cpu), sys.executable, "-c", ask)
        yield


def hook_of(engine: KernelEngine, stage: str) -> str:
    return next(each.hook for each in engine.coverage if each.name == stage)


def run_time_ns(thread: str) -> int:
    """Of a kernel thread, by the scheduler's own account."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(FileNotFoundError):
            if comm.read_text().strip() == thread:
                return int((comm.parent / "schedstat").read_text().split()[0])
    raise AssertionError(f"there is no {thread}")


async def test_segments_that_gro_merges_count_once_with_their_oldest_time(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    receive_by_napi(client, server)
    engine = await watch(start_engine, client, server)
    with (
        counted_data(server) as merged,
        connection(client.namespace, server.namespace, server.address) as both,
    ):
        for _ in range(WRITES):
            both.client.sendall(bytes(WRITE_BYTES))
            read_all(both.server, WRITE_BYTES)
        skbs = merged()
    measured = engine.read()
    assert WRITES <= skbs < WRITES * WRITE_BYTES // SEGMENT_BYTES // 5
    for stage in ("rx.softirq", "rx.stack", "rx.socket", "rx.total"):
        assert account_for(measured[SERVER], stage) == (skbs, 0), stage
    assert_parts_add_up(measured[SERVER], "rx")
    assert count(measured[CLIENT], "tx.total") <= skbs


async def test_datagrams_that_came_as_one_skb_have_one_sample_and_the_rest_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
    ):
        # one skb until the socket, which does not ask for UDP_GRO: udp_queue_rcv_skb()
        sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in range(WRITES):
            sending.sendto(bytes(20 * 100), (server.address, PORT))
            for _ in range(20):
                assert len(reading.recv(1000)) == 100
    received = engine.read()[SERVER]
    samples, lost = account_for(received, "rx.socket")
    unmatched = received.stage("rx.stack").unmatched
    assert (samples + lost, unmatched) == (WRITES, WRITES * 19)
    assert_parts_add_up(received, "rx")


async def test_datagrams_that_napi_receives_as_a_list_are_each_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    receive_by_napi(client, server)
    split_bursts(client)
    engine = await watch(start_engine, client, server)
    waits = Durations()
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
    ):
        sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in range(WRITES):
            sent = Moment.of(
                lambda: sending.sendto(bytes(BURST * 100), (server.address, PORT)),
                lambda: wait_for_byte(reading, BURST * 100 - 1),
            )
            for _ in range(BURST):
                await asyncio.sleep(0.0005)
                read = Moment.of(lambda: reading.recv(1000))
                waits.add(sent, read)
    received = engine.read()[SERVER]
    for stage in ("rx.stack", "rx.socket", "rx.total"):
        assert account_for(received, stage) == (WRITES * BURST, 0), stage
    waits.assert_are_in(received.stage("rx.socket").histogram)
    assert_parts_add_up(received, "rx")


async def test_a_list_is_measured_while_its_reader_asks_how_much_there_is(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    receive_by_napi(client, server)
    split_bursts(client)
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
        asked_for_bytes(reading),
    ):
        sending.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in range(2 * WRITES):
            sending.sendto(bytes(BURST * 100), (server.address, PORT))
            wait_for_byte(reading, BURST * 100 - 1)
            for _ in range(BURST):
                reading.recv(1000)
    received = engine.read()[SERVER]
    for stage in ("rx.stack", "rx.socket", "rx.total"):
        assert account_for(received, stage) == (2 * WRITES * BURST, 0), stage


async def test_a_thread_of_napi_has_no_softirq_to_wait_for(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    receive_by_napi(client, server)
    server.namespace.execute("sh", "-c", "echo 1 > /sys/class/net/eth0/threaded")
    engine = await watch(start_engine, client, server)
    with connection(client.namespace, server.namespace, server.address) as both:
        for _ in range(REQUESTS):
            both.client.sendall(b"q")
            read_all(both.server, 1)
    received = engine.read()[SERVER]
    # At a load of ten, up to 12 of 2,000 were polled within a microsecond of a softirq's entry.
    assert count(received, "rx.softirq") <= REQUESTS // 50
    assert account_for(received, "rx.total") == (REQUESTS, 0)
    assert_parts_add_up(received, "rx")


@pytest.mark.every_kernel
@pytest.mark.parametrize("without", [(), NO_VARIABLES], ids=["variables", "programs"])
async def test_packets_that_a_process_receives_itself_wait_for_no_softirq(
    start_engine: Start, without: tuple[str, ...]
) -> None:
    """Who writes to a tun device receives the packet in its own call: tun_rx_batched()."""
    with (
        tun("near", "192.0.2.1", "192.0.2.2") as near,
        tun("far", "192.0.2.2", "192.0.2.1") as far,
        FarWire(near, far).up(),
    ):
        engine = await watch_namespace(
            start_engine, near.namespace, modules=[Module.RX], without=without
        )
        with (
            connection(near.namespace, far.namespace, far.address) as both,
            connection(far.namespace, far.namespace, far.address, port=PORT + 1) as elsewhere,
        ):
            for _ in range(FEW):
                elsewhere.client.sendall(b"q")  # through the loopback, by a softirq
                read_all(elsewhere.server, 1)
                both.server.sendall(b"r")
                read_all(both.client, 1)
    received = engine.read()[CLIENT]
    assert account_for(received, "rx.total") == (FEW, 0)
    assert not {"rx.softirq", "rx.irq"} & received.stages.keys()
    assert_parts_add_up(received, "rx")


def read_at_once(reading: socket.socket) -> tuple[Moment, list[int]]:
    """A datagram as soon as it is there: when it was read, and the kernel's stamp (realtime)."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before_ns = time.time_ns()
        with suppress(BlockingIOError):
            _, ancillary, *_ = reading.recvmsg(16, 512, socket.MSG_DONTWAIT)
            return Moment(before_ns, time.time_ns()), stamps(ancillary)
        assert time.monotonic() < deadline, "a datagram did not come"


@pytest.mark.thorough
async def test_the_wait_for_the_cpu_that_a_packet_is_steered_to_is_found_in_rx_softirq(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    cpu, *_ = sorted(os.sched_getaffinity(0))
    steer(server.namespace, "eth0", cpu)
    engine = await watch(start_engine, client, server)
    assert "netif_rx_entry" not in hook_of(engine, "rx.softirq")
    took = Durations()
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace, family=socket.AF_INET) as sending,
    ):
        reading.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RECEIVE_STAMPS)

        def send() -> tuple[Moment, list[int]]:
            sending.sendto(b"d", (server.address, PORT))
            return read_at_once(reading)

        until(lambda: bool(send()[1]), "stamps of what arrives")
        engine.read()  # which finds that a device steers
        assert "netif_rx_entry" in hook_of(engine, "rx.softirq")
        with without_softirqs(cpu), away_from(cpu):
            for _ in range(STEERED):
                await asyncio.sleep(0.003)  # or each would come just when the one before could
                read, (stamp_ns,) = send()
                took.add(Moment(stamp_ns, stamp_ns), read)
    received = engine.read()[SERVER]
    # What a softirq receives that interrupts a thread hidden from tracers, is hidden as well.
    samples, _ = account_for(received, "rx.total")
    assert STEERED * 0.9 <= samples <= STEERED
    if samples == STEERED:
        took.assert_are_in(received.stage("rx.total").histogram)
    waited = received.stage("rx.softirq").histogram
    assert waited.percentile(90) > MILLISECOND_NS
    assert_parts_add_up(received, "rx")


async def test_packets_that_ksoftirqd_receives_are_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    cpu, *_ = sorted(os.sched_getaffinity(0))
    steer(server.namespace, "eth0", cpu)
    engine = await watch(start_engine, client, server)
    with storm(cpu), connection(client.namespace, server.namespace, server.address) as both:
        began, ran = time.monotonic_ns(), run_time_ns(f"ksoftirqd/{cpu}")
        for _ in range(FEW):
            both.client.sendall(b"q")
            read_all(both.server, 1)
        share = (run_time_ns(f"ksoftirqd/{cpu}") - ran) / (time.monotonic_ns() - began)
    received = engine.read()[SERVER]
    assert share > 0.05
    # What a softirq receives that interrupts a thread hidden from tracers, is hidden as well.
    samples, missing = account_for(received, "rx.total")
    missing += received.stage("rx.socket").unmatched
    assert samples + missing == FEW
    assert samples > FEW // 2
    for stage in ("rx.softirq", "rx.stack", "rx.socket"):
        assert count(received, stage) == samples
    assert_parts_add_up(received, "rx")
