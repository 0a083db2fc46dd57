"""A peer that writes a message in pieces, and waits for an ACK that our TCP delays."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.long_paths import MS, NEAR, Ends, LongPath, long_path, watch_both_ends
from tests.live.sockets import read_all, tcp_figures

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.shared_programs
TIMES = 20
FEW = 3  # that a busy machine may add or hide
typed_and_plain = pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])


def delayed_acks(path: LongPath) -> int:
    return tcp_figures(path.near.namespace)["DelayedACKs"]


def answer_in_pieces(ends: Ends) -> int:
    """The far end writes head and body; returns the nanoseconds until the near end has both."""
    ends.near.sendall(b"q" * 64)
    read_all(ends.far, 64)
    began_ns = time.monotonic_ns()
    ends.far.sendall(b"h" * 100)
    ends.far.sendall(b"b" * 1000)
    read_all(ends.near, 1100)
    return time.monotonic_ns() - began_ns


@typed_and_plain
@pytest.mark.parametrize("delay_ms", [0, 10])
async def test_a_body_that_waits_for_our_delayed_ack_is_counted_with_its_wait(
    start_engine: Start, typed: bool, delay_ms: int
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = delay_ms / 1e3
        with path.connection() as ends:
            for _ in range(10):
                ends.ask(b"q" * 64, b"r" * 64)
            engine.read()
            ends.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            before = delayed_acks(path)
            waits_ns = [answer_in_pieces(ends) for _ in range(TIMES)]
            delayed = delayed_acks(path) - before
            ends.ask(b"q" * 64, b"r" * 64)  # only now the last message is over
            counters = engine.read()[NEAR].counters
    assert delayed > TIMES / 2
    assert TIMES / 2 < counters["heldBackByPeer"] <= delayed + FEW
    assert 34 * MS * counters["heldBackByPeer"] < counters["heldBackByPeerNs"] < sum(waits_ns)


@typed_and_plain
async def test_a_peer_that_streams_slowly_holds_nothing_back(
    start_engine: Start, typed: bool
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = 0.010
        with path.connection() as ends:
            for _ in range(10):
                ends.ask(b"q" * 64, b"r" * 64)
            for wait_ms in (5, 60, 80, 100) * 5:
                ends.near.sendall(b"q" * 64)
                read_all(ends.far, 64)
                for _ in range(2):
                    ends.far.sendall(b"p" * 100)
                    read_all(ends.near, 100)
                    await asyncio.sleep(wait_ms / 1e3)
            counters = engine.read()[NEAR].counters
    assert counters.get("heldBackByPeer", 0) <= FEW
