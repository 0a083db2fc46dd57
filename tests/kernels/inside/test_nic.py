"""Network devices with a driver, interrupts and completions, in pods and on the node itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from latencyprobe.measurement import Measurement
from latencyprobe.stages import Module
from latencyprobe_agent.kernel.engine import KernelEngine
from latencyprobe_agent.kernel.headers import version_code
from tests.live.pods import Pod
from tests.live.sockets import PORT, everything_in, udp_socket
from tests.live.test_engine_accuracy import CLIENT, SERVER, account_for, both, count, measure
from tests.patience import patient

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
OF_A_DEVICE = ("rx.irq", "rx.softirq", "rx.total", "tx.qdisc", "tx.total")
FLOOD = 3000
THREADED_SINCE = (5 << 16) + (12 << 8)  # kernel commit 5fdd2f0e5c64


def assert_counted_once(measured: Measurement, times: int) -> None:
    for stage in OF_A_DEVICE:
        assert account_for(measured, stage) == (times, 0), stage
    # virtio frees a packet when it sends the next: free_old_xmit(), drivers/net/virtio_net.c
    assert times - 1 <= count(measured, "tx.driver") <= times


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_packets_of_a_network_device_are_counted_once_at_each_stage(
    start_engine: Start, nics: Pair, protocol: str
) -> None:
    client, server = nics
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 100, "--protocol", protocol)
    for slot in (CLIENT, SERVER):
        assert_counted_once(measured[slot], 100)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_what_uses_the_nodes_own_network_is_measured_without_a_way_through_the_host(
    start_engine: Start, node_and_beyond: Pair, protocol: str
) -> None:
    client, server = node_and_beyond
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 100, "--protocol", protocol)
    assert_counted_once(measured[SERVER], 100)
    assert "rx.host" not in measured[SERVER].stages
    assert "tx.host" not in measured[SERVER].stages


def ksoftirqd_runs() -> int:
    """How often the threads that take over from softirqs got a CPU."""
    names = ((path, path.read_text()) for path in Path("/proc").glob("[0-9]*/comm"))
    threads = [path.parent for path, name in names if name.startswith("ksoftirqd/")]
    return sum(int((thread / "schedstat").read_text().split()[2]) for thread in threads)


async def test_what_ksoftirqd_receives_is_measured_like_all_else(
    start_engine: Start, nics: Pair
) -> None:
    client, server = nics
    engine = start_engine()
    engine.assign({SERVER: everything_in(server)})
    await engine.use(frozenset({Module.RX}))
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        sending.sendto(b"d", (server.address, PORT))
        reading.recv(1)
        engine.read()
        before = ksoftirqd_runs()
        received = flood(sending, reading, server.address)
        runs = ksoftirqd_runs() - before
    measured = engine.read()[SERVER]
    assert runs > 10
    samples, missing = account_for(measured, "rx.total")
    assert samples + missing == received
    assert samples > 0.9 * received
    # of a poll that goes on where the one before had to end, no interrupt tells the beginning
    assert 0 < count(measured, "rx.irq") <= count(measured, "rx.softirq") == samples
    parts = ("rx.irq", "rx.softirq", "rx.stack", "rx.socket")
    whole = measured.stage("rx.total").histogram.sum_ns
    assert sum(measured.stage(part).histogram.sum_ns for part in parts) == whole


def flood(sending: socket.socket, reading: socket.socket, address: str) -> int:
    """More than a softirq's time is enough for; returns how many were read."""

    def send() -> None:
        for _ in range(FLOOD):
            sending.sendto(b"d", (address, PORT))

    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    reading.settimeout(patient(0.5))
    with suppress(TimeoutError):
        while True:
            reading.recv(1)
            received += 1
    sender.join()
    return received


async def test_a_poll_in_a_thread_of_its_own_has_no_softirq_to_wait_for(
    start_engine: Start, nics: Pair
) -> None:
    client, server = nics
    threaded = "/sys/class/net/eth0/threaded"
    if version_code() < THREADED_SINCE:
        with pytest.raises(RuntimeError, match=threaded):
            server.namespace.execute("sh", "-c", f"echo 1 > {threaded}")
        return
    server.namespace.execute("sh", "-c", f"echo 1 > {threaded}")
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 100)
    assert account_for(measured[SERVER], "rx.total") == (100, 0)
    assert "rx.irq" not in measured[SERVER].stages
    assert "rx.softirq" not in measured[SERVER].stages
    assert account_for(measured[CLIENT], "rx.irq") == (100, 0)
