"""A network device with a driver, interrupts and completions, inside the pod."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe.stages import BY_NAME
from latencyprobe_agent.kernel.engine import KernelEngine
from tests.live.pods import Pod
from tests.live.test_engine_accuracy import CLIENT, SERVER, account_for, both, measure

Start = Callable[..., KernelEngine]
BY_INTERRUPT: list[str] = [stage for stage in ("rx.irq",) if stage in BY_NAME]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_packets_of_a_network_device_are_counted_once_at_each_stage(
    start_engine: Start, nics: tuple[Pod, Pod], protocol: str
) -> None:
    client, server = nics
    engine = await both(start_engine, client, server)
    measured, _ = await measure(engine, client, server, 100, "--protocol", protocol)
    for slot in (CLIENT, SERVER):
        for stage in ("rx.softirq", "rx.total", "tx.qdisc", "tx.total", *BY_INTERRUPT):
            assert account_for(measured[slot], stage) == (100, 0), stage
        # virtio frees a packet when it sends the next: free_old_xmit(), drivers/net/virtio_net.c
        assert 99 <= measured[slot].stage("tx.driver").histogram.count <= 100
