"""A slow network: found in the stages that wait for the other side, and nowhere else."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, RX_PARTS, TX_PARTS, watch_namespace
from tests.live.sockets import PORT, connect, listen, read_all
from tests.live.truth import BUCKET
from tests.live.tuns import FarWire, tun

Start = Callable[..., KernelEngine]
MS = 1_000_000
DELAYS_MS = [10] * 60 + [20] * 30 + [80] * 10


LATE = 30  # the number of the one round trip that takes long
FEW_DELAYS_MS = [10] * LATE + [100] + [10] * LATE

pytestmark = pytest.mark.shared_programs


async def test_a_single_long_round_trip_is_a_sample_of_its_own(start_engine: Start) -> None:
    with (
        tun("near", "192.0.2.1", "192.0.2.2") as near,
        tun("far", "192.0.2.2", "192.0.2.1") as far,
        FarWire(near, far).up() as wire,
        listen(far.namespace, far.address) as listener,
    ):
        engine = await watch_namespace(start_engine, near.namespace)
        waits_ns = []
        with (
            connect(near.namespace, far.address, PORT) as asking,
            listener.accept()[0] as answering,
        ):
            engine.read()
            for wire.delay_s in (delay_ms / 1e3 for delay_ms in FEW_DELAYS_MS):
                began_ns = time.monotonic_ns()
                asking.sendall(b"q")
                read_all(answering, 1)
                answering.sendall(b"r")
                read_all(asking, 1)
                waits_ns.append(time.monotonic_ns() - began_ns)
        rtt = engine.read()[CLIENT].stage("tcp.rtt").histogram
    assert rtt.count == len(FEW_DELAYS_MS)  # with that of the handshake, without the last
    least = Histogram.of([delay_ms * MS for delay_ms in FEW_DELAYS_MS])
    most = Histogram.of(waits_ns)
    for percent in (50, 90):
        lower, upper = least.percentile(percent), most.percentile(percent)
        assert lower / BUCKET < rtt.percentile(percent) < upper * BUCKET
    assert 100 * MS / BUCKET < rtt.max_ns < most.max_ns * BUCKET


async def test_a_slow_network_is_found_where_the_other_side_is_waited_for_and_nowhere_else(
    start_engine: Start,
) -> None:
    connect_ns, reply_ns = [], []
    with (
        tun("near", "192.0.2.1", "192.0.2.2") as near,
        tun("far", "192.0.2.2", "192.0.2.1") as far,
        FarWire(near, far).up() as wire,
        listen(far.namespace, far.address) as listener,
    ):
        engine = await watch_namespace(start_engine, near.namespace)
        for wire.delay_s in (delay_ms / 1e3 for delay_ms in DELAYS_MS):
            began_ns = time.monotonic_ns()
            with connect(near.namespace, far.address, PORT) as asking:
                connect_ns.append(time.monotonic_ns() - began_ns)
                answering, _ = listener.accept()
                with answering:
                    began_ns = time.monotonic_ns()
                    asking.sendall(b"q")
                    read_all(answering, 1)
                    answering.sendall(b"r")
                    asking.recv(1, socket.MSG_PEEK)
                    reply_ns.append(time.monotonic_ns() - began_ns)
                    read_all(asking, 1)
        measured = engine.read()[CLIENT]
    least = Histogram.of([delay_ms * MS for delay_ms in DELAYS_MS])
    for stage, waited_ns in (
        ("tcp.connect", connect_ns),
        ("peer.response", reply_ns),
        ("tcp.rtt", list(map(max, connect_ns, reply_ns))),
    ):
        # What the application waited holds besides how long it took to run again.
        ours, most = measured.stage(stage).histogram, Histogram.of(waited_ns)
        assert ours.count == len(DELAYS_MS), stage
        for percent in (50, 99):
            lower, upper = (truth.percentile(percent) for truth in (least, most))
            assert lower / BUCKET < ours.percentile(percent) < upper * BUCKET, stage
    for part in (*RX_PARTS, *TX_PARTS):
        if part in measured.stages:
            assert measured.stage(part).histogram.min_ns < 5 * MS, part
    assert judge(measured).bottleneck is Bottleneck.NETWORK
