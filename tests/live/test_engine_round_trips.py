"""The round trip against its own least: what has grown, and what the peer held back."""

from __future__ import annotations

import asyncio
import os
import socket
import termios
import time
from collections.abc import Callable
from fcntl import ioctl

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.long_paths import MS, NEAR, SEGMENT, Ends, long_path, watch_both_ends
from tests.live.measuring import count
from tests.live.sockets import PATIENCE_SECONDS, read_all

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.shared_programs
TIMES = 30
LATE_BY_LOAD = 3  # the wire is a process, which may have to wait for a CPU for 40 ms
typed_and_plain = pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])


def send_and_wait(ends: Ends, amount: int) -> None:
    """Send to the far end; returns when its ACK of all of it is there."""
    ends.near.sendall(bytes(amount))
    read_all(ends.far, amount)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while unacknowledged := _unacknowledged(ends.near):
        assert time.monotonic() < deadline, f"{unacknowledged} bytes are not acknowledged"
        os.sched_yield()


def _unacknowledged(end: socket.socket) -> int:
    answer = bytearray(4)
    ioctl(end.fileno(), termios.TIOCOUTQ, answer)
    return int.from_bytes(answer, "little")


def growth(measured: Measurement) -> tuple[int, int]:
    """(samples whose ACK no peer delays, how much longer they were)."""
    counters = measured.counters
    return counters.get("rttGrowthSamples", 0), counters.get("rttGrowthNs", 0)


def least(measured: Measurement) -> float:
    return measured.counters["rttLeastNs"] / count(measured, "tcp.rtt")


@typed_and_plain
async def test_growth_of_a_round_trip_is_counted_and_its_length_from_the_start_is_not(
    start_engine: Start, typed: bool
) -> None:
    def send(ends: Ends) -> None:
        # Each ACK is for two segments: one for a single segment looks like one that was delayed.
        ends.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        send_and_wait(ends, 6 * SEGMENT)

    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = 0.010
        with path.connection() as ends:
            for _ in range(TIMES):
                send(ends)
            steady = engine.read()[NEAR]
            for delay_ms in range(10, 50, 2):  # slowly, so that nothing is sent again
                path.wire.delay_s = delay_ms / 1e3
                send(ends)
            engine.read()
            before_grown = path.delayed_acks_of_far()
            for _ in range(TIMES):
                send(ends)
            delayed = path.delayed_acks_of_far() - before_grown
            grown = engine.read()[NEAR]
    for measured in (steady, grown):
        assert 10 * MS <= least(measured) <= measured.stage("tcp.rtt").histogram.mean_ns
        samples, growth_ns = growth(measured)
        assert TIMES - 2 <= samples <= count(measured, "tcp.rtt")
        whole_ns = measured.stage("tcp.rtt").histogram.sum_ns
        assert growth_ns <= whole_ns - measured.counters["rttLeastNs"]
    assert least(grown) < grown.stage("tcp.rtt").histogram.percentile(50) / 2
    before, after = growth(steady), growth(grown)
    assert after[1] / after[0] > 35 * MS > before[1] / before[0]
    # The kernel delays one whose segment has none behind it: after three that came as one.
    assert grown.counters.get("delayedAcks", 0) <= delayed + grown.counters.get("retransmits", 0)


@typed_and_plain
async def test_acks_that_a_timer_delayed_are_counted_as_the_peers_kernel_counts_them(
    start_engine: Start, typed: bool
) -> None:
    """The far end reads, and says nothing: its ACKs come bare, when the timer expires."""
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = 0.005
        with path.connection() as ends:
            for _ in range(3):
                ends.ask(b"q", b"r")
            before = path.delayed_acks_of_far()
            engine.read()
            for _ in range(TIMES):
                ends.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                send_and_wait(ends, 100)
            delayed = path.delayed_acks_of_far() - before
            ends.ask(b"q", b"r")  # only now the last one's round trip is known
            measured = engine.read()[NEAR]
    assert delayed > TIMES / 4
    counted = measured.counters["delayedAcks"]
    assert abs(counted - delayed) <= LATE_BY_LOAD
    assert measured.counters["delayedAckNs"] > 34 * MS * counted
    assert least(measured) < measured.stage("tcp.rtt").histogram.max_ns / 2
    assert growth(measured)[0] <= 1


@typed_and_plain
async def test_acks_that_come_at_once_over_a_path_that_grows_are_not_delayed(
    start_engine: Start, typed: bool
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = 0.002
        with path.connection() as ends:
            for step in range(TIMES):
                path.wire.delay_s = 0.002 + 0.001 * step
                ends.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                send_and_wait(ends, 100)
            measured = engine.read()[NEAR]
        delayed = path.delayed_acks_of_far()
    assert measured.stage("tcp.rtt").histogram.max_ns > TIMES * MS  # the last delay and more
    assert measured.counters.get("delayedAcks", 0) <= delayed + LATE_BY_LOAD
    assert delayed <= LATE_BY_LOAD


async def test_acks_that_wait_for_the_answer_are_the_peers(start_engine: Start) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path)
        path.wire.delay_s = 0.005
        with path.connection() as ends:
            for _ in range(TIMES):
                ends.near.sendall(b"q")
                read_all(ends.far, 1)
                await asyncio.sleep(0.015)
                ends.far.sendall(b"r")
                read_all(ends.near, 1)
            measured = engine.read()[NEAR]
    delayed = measured.counters["delayedAcks"]
    assert TIMES / 2 < delayed <= TIMES
    assert measured.counters["delayedAckNs"] > 10 * MS * delayed  # growth by load is subtracted
    assert least(measured) < 15 * MS
