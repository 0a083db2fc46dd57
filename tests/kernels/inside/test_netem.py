"""A slow network, as netem makes it: found by the stages that wait for the other side."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe.domain.stages import BY_NAME
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, RX_PARTS, SERVER, TX_PARTS, both, measure
from tests.live.pods import Pod
from tests.live.truth import BUCKET

Start = Callable[..., KernelEngine]
DELAY_NS = 200_000_000
# Emulation adds milliseconds of its own, at both ends and on either way.
TOLERANCE_NS = 60_000_000
# With a sample for each request, so that a single rest of the machine is not in the median.
WAITING_FOR_THE_OTHER_SIDE: list[str] = [
    stage for stage in ("tcp.rtt", "peer.response") if stage in BY_NAME
]


async def test_a_slow_network_is_found_where_the_other_side_is_waited_for_and_nowhere_else(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    await measure(engine, client, server, 1)  # ARP has its answer: connect() does not wait for it
    far_side = ("tc", "qdisc", "add", "dev", "eth0", "root", "netem")
    server.namespace.execute(*far_side, "delay", f"{DELAY_NS // 1000}us")
    where = (server.address, "7000", "30")
    serving, asking = server.start("server", *where), client.start("client", *where)
    try:
        asking.go()
        connect_ns = asking.result()["connect_ns"]
        serving.result()
    finally:
        for traffic in (serving, asking):
            traffic.stop()
    measured = engine.read()
    connect = measured[CLIENT].stage("tcp.connect").histogram
    assert connect.count == 1
    assert DELAY_NS / BUCKET <= connect.percentile(50) <= connect_ns * BUCKET
    for stage in WAITING_FOR_THE_OTHER_SIDE:
        histogram = measured[CLIENT].stage(stage).histogram
        assert histogram.count > 0, stage
        assert histogram.percentile(50) == pytest.approx(DELAY_NS, abs=TOLERANCE_NS), stage
    for part in (*RX_PARTS, *TX_PARTS):
        if part in measured[CLIENT].stages:
            histogram = measured[CLIENT].stage(part).histogram
            assert histogram.min_ns < DELAY_NS / 2, part
    # the server's own queueing discipline is what is slow
    assert measured[SERVER].stage("tx.qdisc").histogram.percentile(50) == pytest.approx(
        DELAY_NS, abs=TOLERANCE_NS
    )
