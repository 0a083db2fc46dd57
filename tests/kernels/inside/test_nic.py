"""Network devices with a driver, interrupts and completions, in pods and on the node itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.kernel.build.headers import version_code
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    SERVER,
    account_for,
    assert_all_left,
    both,
    count,
    measure,
)
from tests.live.pods import Pod
from tests.live.sockets import PATIENCE_SECONDS, sent_again
from tests.live.targets import until

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
REQUESTS = 100
RECEIVED = ("rx.softirq", "rx.total")
SENT = ("tx.qdisc", "tx.total")
FREED_LATER_SINCE = (6 << 16) + (19 << 8)  # kernel commit e20dfbad8aab
THREADED_SINCE = (5 << 16) + (12 << 8)  # kernel commit 5fdd2f0e5c64


async def measure_to_the_end(
    engine: KernelEngine, client: Pod, server: Pod, *options: str, ends: tuple[int, ...]
) -> dict[int, Measurement]:
    """Have the client ask the server, and wait until the drivers of `ends` are done.

    A driver frees a packet some time after the peer has received it: virtio when an interrupt, or
    the next packet received, has it look, virtnet_poll_tx() and virtnet_poll_cleantx(),
    drivers/net/virtio_net.c.
    """
    measured, _ = await measure(engine, client, server, REQUESTS, *options)

    def are_done() -> bool:
        for slot, more in engine.read().items():
            measured[slot] = measured.get(slot, NOTHING) + more
        return all(count(measured[slot], "tx.total") >= REQUESTS for slot in ends)

    until(are_done, f"{REQUESTS} packets freed by each driver", seconds=PATIENCE_SECONDS)
    return measured


def assert_counted_once(measured: Measurement, again: int) -> None:
    """`again`: segments that TCP sent once more, as the kernel counts them."""
    for stage in RECEIVED:
        assert account_for(measured, stage) == (REQUESTS, 0), stage
    for stage in SENT:
        assert_all_left(measured, stage, REQUESTS, again)
    assert_interrupts_brought(measured)
    # The first one only shows that its driver tells of the end: bpf/modules/driver.bpf.c
    assert REQUESTS - 1 <= count(measured, "tx.driver") <= REQUESTS + again


def assert_interrupts_brought(measured: Measurement) -> None:
    """All packets but those that came while a poll ended, which polls again without an interrupt:
    virtqueue_napi_complete(), drivers/net/virtio_net.c.
    """
    brought, missing = account_for(measured, "rx.irq")
    assert 0.95 * REQUESTS <= brought <= REQUESTS
    assert missing == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_packets_of_a_network_device_are_counted_once_at_each_stage(
    start_engine: Start, nics: Pair, protocol: str
) -> None:
    client, server = nics
    engine = await both(start_engine, client, server)
    pods = {CLIENT: client, SERVER: server}
    before = {slot: sent_again(pod.namespace) for slot, pod in pods.items()}
    measured = await measure_to_the_end(
        engine, client, server, "--protocol", protocol, ends=tuple(pods)
    )
    for slot, pod in pods.items():
        assert_counted_once(measured[slot], sent_again(pod.namespace) - before[slot])
    driver = next(each for each in engine.coverage if each.name == "tx.driver")
    is_freed_later = version_code() >= FREED_LATER_SINCE
    assert ("until their sender's CPU frees them" in driver.reason) is is_freed_later


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_hostnetwork_is_measured_without_a_path_through_the_host(
    start_engine: Start, node_and_beyond: Pair, protocol: str
) -> None:
    client, server = node_and_beyond
    engine = await both(start_engine, client, server)
    before = sent_again(server.namespace)
    measured = await measure_to_the_end(
        engine, client, server, "--protocol", protocol, ends=(SERVER,)
    )
    assert_counted_once(measured[SERVER], sent_again(server.namespace) - before)
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
    measured, _ = await measure(engine, client, server, REQUESTS)
    assert account_for(measured[SERVER], "rx.total") == (REQUESTS, 0)
    assert "rx.irq" not in measured[SERVER].stages
    assert "rx.softirq" not in measured[SERVER].stages
    assert_interrupts_brought(measured[CLIENT])
