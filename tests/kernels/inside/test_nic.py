"""Network devices with a driver, interrupts and completions, in pods and on the node itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe.measurement import Measurement
from latencyprobe_agent.kernel.engine import KernelEngine
from latencyprobe_agent.kernel.headers import version_code
from tests.live.pods import Pod
from tests.live.test_engine_accuracy import CLIENT, SERVER, account_for, both, count, measure

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
OF_A_DEVICE = ("rx.irq", "rx.softirq", "rx.total", "tx.qdisc", "tx.total")
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
