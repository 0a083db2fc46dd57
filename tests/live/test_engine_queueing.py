"""tcp.queueing: how much longer segments are in transit than on an empty path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.long_paths import FAR, MS, NEAR, Ends, LongPath, long_path, watch_both_ends
from tests.live.measuring import CLIENT, SERVER, count, watch
from tests.live.pods import Pod
from tests.live.sockets import exchange, open_between, read_all

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.shared_programs
TIMES = 40
REQUEST, REPLY = b"q" * 64, b"r" * 128
LEAST_MS, GROWN_MS = 5, 45
CLOCK_PROOF_S = 0.3  # the peer's clock is known after half of it
typed_and_plain = pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])


def ask(ends: Ends, times: int = TIMES) -> list[int]:
    """The nanoseconds that each answer took."""
    return [ends.ask(REQUEST, REPLY) for _ in range(times)]


def fill_the_queue(path: LongPath, ends: Ends) -> None:
    """Have the path grow slowly, so that nothing is sent again."""
    for delay_ms in range(LEAST_MS, GROWN_MS, 2):
        path.wire.delay_s = delay_ms / 1e3
        ask(ends, 1)
    path.wire.delay_s = GROWN_MS / 1e3
    ask(ends, 1)


@typed_and_plain
async def test_a_queue_on_the_path_of_the_answers_is_found_by_those_who_get_them(
    start_engine: Start, typed: bool
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = LEAST_MS / 1e3
        with path.connection() as ends:
            ask(ends)
            fill_the_queue(path, ends)
            engine.read()
            waits_ns = ask(ends)
            measured = engine.read()
    found = measured[NEAR].stage("tcp.queueing").histogram
    assert found.count == TIMES
    # a time stamp is a millisecond coarse, and clocks may drift
    assert found.min_ns > (GROWN_MS - LEAST_MS - 2) * MS
    assert found.sum_ns < sum(waits_ns) - TIMES * (LEAST_MS - 1) * MS
    assert measured[FAR].stage("tcp.queueing").histogram.sum_ns < found.sum_ns / 4
    assert measured[NEAR].counters.get("delayedAcks", 0) < TIMES / 4


@typed_and_plain
async def test_a_peer_that_takes_long_is_no_queue(start_engine: Start, typed: bool) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = LEAST_MS / 1e3
        with path.connection() as ends:
            ask(ends)
            engine.read()
            for _ in range(TIMES):
                ends.near.sendall(REQUEST)
                read_all(ends.far, len(REQUEST))
                await asyncio.sleep(0.030)
                ends.far.sendall(REPLY)
                read_all(ends.near, len(REPLY))
            measured = engine.read()[NEAR]
    assert count(measured, "tcp.queueing") == TIMES
    assert measured.stage("peer.response").histogram.min_ns > 30 * MS
    assert measured.stage("tcp.queueing").histogram.sum_ns < TIMES * 30 * MS / 4


async def test_a_path_that_is_long_from_the_start_has_no_queue(start_engine: Start) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path)
        path.wire.delay_s = GROWN_MS / 1e3
        with path.connection() as ends:
            waits_ns = ask(ends)
            measured = engine.read()[NEAR]
    found = measured.stage("tcp.queueing").histogram
    assert TIMES / 2 < found.count < TIMES  # after the peer's clock was known
    assert found.sum_ns < sum(waits_ns) / 4


async def test_segments_that_follow_each_other_are_few_samples(start_engine: Start) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path)
        with path.connection() as ends:
            ask(ends)
            engine.read()
            began = time.monotonic()
            for _ in range(20 * TIMES):
                ends.far.sendall(REPLY)
                read_all(ends.near, len(REPLY))
            passed_s = time.monotonic() - began
            measured = engine.read()[NEAR]
    assert count(measured, "tcp.queueing") <= 2 + passed_s / 0.1


@typed_and_plain
async def test_quick_answers_whose_time_stamps_are_not_read_are_samples_too(
    start_engine: Start, pair: tuple[Pod, Pod], typed: bool
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=typed)
    with open_between(client, server) as both:
        exchange(both, 1)
        until = time.monotonic() + CLOCK_PROOF_S
        while time.monotonic() < until:
            exchange(both, 1)
        engine.read()
        exchange(both, TIMES)
        measured = engine.read()
    assert count(measured[CLIENT], "tcp.queueing") == TIMES
    assert count(measured[SERVER], "tcp.queueing") == TIMES
