"""RPS on the path through a host: the wait for another CPU is in the stage of its device.

By the tracepoints, and by programs on devices.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.load import loading
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.device_programs import use_on_devices
from tests.live.measuring import (
    MILLISECOND_NS,
    SERVER,
    account_for,
    assert_parts_add_up,
    watch_on_host,
)
from tests.live.nics import nic
from tests.live.pods import Namespace, Pod, pods_on_bridge
from tests.live.sockets import PATIENCE_SECONDS, PORT, udp_socket
from tests.live.steering import away_from, steer, without_softirqs
from tests.live.truth import Durations, Moment

Start = Callable[..., KernelEngine]
STEERED = 40
BURSTS = 5
ARRIVAL = {False: "netif_receive_skb", True: "tcx/ingress"}

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]
ON_DEVICES = pytest.mark.parametrize("on_devices", [False, True], ids=["tracepoint", "devices"])


async def watched(
    start: Start, host: Namespace, client: Pod, server: Pod, *, on_devices: bool
) -> KernelEngine:
    if not on_devices:
        engine = await watch_on_host(start, host, client, server)
    else:
        engine = await use_on_devices(
            start, host, server, modules=frozenset({Module.RX}), first_slot=SERVER
        )
    assert ARRIVAL[on_devices] in hook_of(engine, "rx.host")
    return engine


def hook_of(engine: KernelEngine, stage: str) -> str:
    return next(each.hook for each in engine.coverage if each.name == stage)


async def until_steering_is_seen(engine: KernelEngine, send_one: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "netif_rx_entry" not in hook_of(engine, "rx.softirq"):
        assert time.monotonic() < deadline, engine.coverage
        send_one()
        engine.read()


async def sent_to_a_busy_cpu(
    cpu: int, send: Callable[[], object], read_at_once: Callable[[], Moment]
) -> Durations:
    """What is steered to a CPU whose softirqs come late, from its sending to its reading."""
    took = Durations()
    with without_softirqs(cpu), away_from(cpu):
        for _ in range(STEERED):
            await asyncio.sleep(0.003)  # or each would come just when the one before could
            sent = Moment.of(send)
            took.add(sent, read_at_once())
    return took


@asynccontextmanager
async def steered_by_nic(
    start: Start, *, on_devices: bool
) -> AsyncIterator[tuple[KernelEngine, int, Callable[[], None], Callable[[], Moment]]]:
    """An engine that has seen a NIC steer to a CPU; how to send by the NIC, and to read at once."""
    cpu, *_ = sorted(os.sched_getaffinity(0))
    with pods_on_bridge(2) as (host, (client, server)), nic(host) as device:
        steer(host, "nic0", cpu)
        engine = await watched(start, host, client, server, on_devices=on_devices)
        with udp_socket(server.namespace, server.address, PORT) as reading:

            def send() -> None:
                device.send(server.address, b"d")

            def read_at_once() -> Moment:
                return until_read(reading.recv)

            def send_one() -> None:
                send()
                read_at_once()

            await until_steering_is_seen(engine, send_one)
            yield engine, cpu, send, read_at_once


def assert_waits_are_in(received: Measurement, stage: str, other: str, took: Durations) -> None:
    # What a softirq receives that interrupts a thread hidden from tracers, is hidden as well.
    samples, missing = account_for(received, "rx.total")
    assert STEERED * 0.9 <= samples <= STEERED
    if samples == STEERED:
        assert missing == 0
        took.assert_are_in(received.stage("rx.total").histogram)
    waits = received.stage(stage).histogram
    assert waits.percentile(90) > MILLISECOND_NS
    if other in received.stages:
        assert received.stage(other).histogram.percentile(90) < waits.percentile(90)
    assert_parts_add_up(received, "rx")


@ON_DEVICES
async def test_the_wait_for_the_cpu_that_a_pods_device_steers_to_is_found_in_rx_host(
    start_engine: Start, *, on_devices: bool
) -> None:
    cpu, *_ = sorted(os.sched_getaffinity(0))
    with pods_on_bridge(2) as (host, (client, server)):
        steer(server.namespace, "eth0", cpu)
        engine = await watched(start_engine, host, client, server, on_devices=on_devices)
        with (
            udp_socket(server.namespace, server.address, PORT) as reading,
            udp_socket(client.namespace) as sending,
        ):

            def send() -> None:
                sending.sendto(b"d", (server.address, PORT))

            def read_at_once() -> Moment:
                return until_read(reading.recv)

            send()  # and the neighbour's address is known
            read_at_once()
            engine.read()
            took = await sent_to_a_busy_cpu(cpu, send, read_at_once)
        received = engine.read()[SERVER]
    assert_waits_are_in(received, "rx.host", "rx.softirq", took)


@ON_DEVICES
async def test_the_wait_for_the_cpu_that_a_nic_steers_to_is_found_in_rx_softirq(
    start_engine: Start, *, on_devices: bool
) -> None:
    async with steered_by_nic(start_engine, on_devices=on_devices) as (engine, cpu, send, read):
        took = await sent_to_a_busy_cpu(cpu, send, read)
        received = engine.read()[SERVER]
    assert_waits_are_in(received, "rx.softirq", "rx.host", took)


@ON_DEVICES
async def test_packets_whose_place_another_steered_one_takes_are_lost_and_never_too_short(
    start_engine: Start, monkeypatch: pytest.MonkeyPatch, *, on_devices: bool
) -> None:
    monkeypatch.setattr(loading, "received_bits", lambda cpus: 3)
    async with steered_by_nic(start_engine, on_devices=on_devices) as (engine, cpu, send, read):
        engine.read()
        least_ns: list[int] = []
        with without_softirqs(cpu), away_from(cpu):
            for _ in range(BURSTS):
                await asyncio.sleep(0.003)
                sent = [Moment.of(send) for _ in range(STEERED)]
                got = [read() for _ in sent]
                least_ns += (
                    ended.not_before_ns - began.not_after_ns
                    for began, ended in zip(sent, got, strict=True)
                )
        received = engine.read()[SERVER]
    samples, missing = account_for(received, "rx.total")
    assert received.stage("rx.total").lost > STEERED
    assert 0 < samples <= samples + missing <= BURSTS * STEERED
    assert received.stage("rx.total").histogram.min_ns >= min(least_ns)


def until_read(receive: Callable[[int, int], bytes]) -> Moment:
    """Read a datagram as soon as it is there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before_ns = time.monotonic_ns()
        with suppress(BlockingIOError):
            receive(16, socket.MSG_DONTWAIT)
            return Moment(before_ns, time.monotonic_ns())
        assert time.monotonic() < deadline, "a datagram did not come"
