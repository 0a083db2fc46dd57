"""tx.driver, on a tun device: the test itself is the "hardware" that takes the packets."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    TX_PARTS,
    account_for,
    assert_all_left,
    count,
    let_drivers_rest,
    sent_counts,
    watch_namespace,
)
from tests.live.pods import Pod
from tests.live.sockets import PORT, connection, read_all, sent_again, udp_socket
from tests.live.truth import Durations, Moment
from tests.live.tuns import Tun, tun

Start = Callable[..., KernelEngine]
MILLISECOND_NS = 1_000_000

pytestmark = pytest.mark.unscoped


@pytest.fixture
def left() -> Iterator[Tun]:
    with tun("left", "192.0.2.1", "192.0.2.2") as made:
        yield made


def taken(engine: KernelEngine) -> Measurement:
    return engine.read().get(CLIENT, NOTHING)


def show_that_it_completes(device: Tun) -> None:
    """Until a device was seen to complete a packet it is on trial."""
    with udp_socket(device.namespace) as sending:
        sending.sendto(b"first", (device.beyond, PORT))
        device.take()


def assert_adds_up(measurement: Measurement) -> None:
    whole = measurement.stage("tx.total").histogram.sum_ns
    assert sum(measurement.stage(part).histogram.sum_ns for part in TX_PARTS) == whole > 0


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_slow_driver_is_found_in_tx_driver_and_nowhere_else(
    start_engine: Start, left: Tun, typed: bool
) -> None:
    engine = await watch_namespace(start_engine, left.namespace, typed=typed)
    show_that_it_completes(left)
    first = taken(engine)
    assert account_for(first, "tx.total") == (1, 0)
    assert "tx.driver" not in first.stages
    waits = Durations()
    with udp_socket(left.namespace) as sending:
        for round_ in range(110):
            sent = Moment.of(lambda: sending.sendto(b"d" * 100, (left.beyond, PORT)))
            await asyncio.sleep(0.001 + 0.0001 * round_)
            waits.add(sent, Moment.of(left.take))
    measured = taken(engine)
    waits.assert_are_in(measured.stage("tx.driver").histogram)
    assert account_for(measured, "tx.total") == (110, 0)
    assert_adds_up(measured)
    assert measured.stage("tx.qdisc").histogram.min_ns < MILLISECOND_NS
    assert judge(measured).bottleneck is Bottleneck.DRIVER


@contextmanager
def wire(one: Tun, other: Tun, delay_s: float) -> Iterator[None]:
    """Carries packets both ways; those of `one` after a delay."""
    stop, stopping = os.pipe()

    def carry(source: Tun, target: Tun, wait_s: float) -> None:
        while True:
            readable, _, _ = select.select([source.descriptor, stop], [], [])
            if stop in readable:
                return
            time.sleep(wait_s)
            os.write(target.descriptor, source.take())

    ways = [
        threading.Thread(target=carry, args=(one, other, delay_s)),
        threading.Thread(target=carry, args=(other, one, 0)),
    ]
    for way in ways:
        way.start()
    try:
        yield
    finally:
        os.close(stopping)
        for way in ways:
            way.join()
        os.close(stop)


async def test_segments_of_tcp_are_followed_to_the_driver_though_they_are_clones(
    start_engine: Start, left: Tun
) -> None:
    with tun("right", left.beyond, left.address) as right:
        engine = await watch_namespace(start_engine, left.namespace)
        with (
            wire(left, right, 0.003),
            connection(left.namespace, right.namespace, left.beyond) as both,
        ):
            for _ in range(60):
                both.client.sendall(b"q" * 200)
                read_all(both.server, 200)
                both.server.sendall(b"r" * 200)
                read_all(both.client, 200)
            measured = taken(engine)
            again = sent_again(left.namespace)
    assert_all_left(measured, "tx.total", 60, again)
    driver = measured.stage("tx.driver").histogram
    # The first may be the device's trial.
    assert driver.count >= count(measured, "tx.total") - 1
    assert 3 * MILLISECOND_NS < driver.min_ns < 6 * MILLISECOND_NS
    assert_adds_up(measured)


@pytest.mark.every_kernel
async def test_packets_that_the_driver_drops_are_unmatched_and_lend_no_times(
    start_engine: Start,
) -> None:
    with tun("short", "192.0.2.1", "192.0.2.2", queue_length=4) as device:
        engine = await watch_namespace(start_engine, device.namespace)
        show_that_it_completes(device)
        taken(engine)
        with udp_socket(device.namespace) as sending:
            for _ in range(200):
                sending.sendto(b"d" * 100, (device.beyond, PORT))
            kept = 0
            while select.select([device.descriptor], [], [], 0)[0]:
                device.take()
                kept += 1
            for _ in range(50):
                sending.sendto(b"d" * 100, (device.beyond, PORT))
                device.take()
    measured = taken(engine)
    assert 0 < kept < 200
    assert account_for(measured, "tx.total") == (kept + 50, 200 - kept)
    assert count(measured, "tx.driver") == kept + 50
    assert_adds_up(measured)


async def test_devices_that_complete_nothing_have_no_tx_driver(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await watch_namespace(start_engine, client.namespace)
    for there, address in ((server.namespace, server.address), (client.namespace, "127.0.0.1")):
        with connection(client.namespace, there, address) as both:
            for _ in range(50):
                both.client.sendall(b"q")
                read_all(both.server, 1)
    measured = taken(engine)
    assert count(measured, "tx.total") in sent_counts(100, measured)
    assert "tx.driver" not in measured.stages


def follows_drivers(engine: KernelEngine) -> bool:
    return engine._object is not None and engine._object.drivers.are_followed


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_driver_that_gets_packets_again_is_followed_from_the_next_reading_on(
    start_engine: Start, left: Tun, typed: bool
) -> None:
    engine = await watch_namespace(start_engine, left.namespace, typed=typed)
    show_that_it_completes(left)
    coverage = engine.coverage
    taken(engine)
    let_drivers_rest(engine)
    taken(engine)
    assert not follows_drivers(engine)
    assert engine.coverage == coverage

    show_that_it_completes(left)
    unfollowed = taken(engine)
    assert account_for(unfollowed, "tx.total") == (1, 0)
    assert "tx.driver" not in unfollowed.stages
    assert follows_drivers(engine)

    show_that_it_completes(left)
    followed = taken(engine)
    assert account_for(followed, "tx.total") == (1, 0)
    assert count(followed, "tx.driver") == 1
    assert_adds_up(followed)
