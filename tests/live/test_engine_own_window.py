"""ownWindowFull: a peer that waits for our receive window, against what its kernel accounts."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.long_paths import FAR, MS, NEAR, Ends, LongPath, long_path, watch_both_ends
from tests.live.measuring import CLIENT, watch
from tests.live.pods import Namespace, Pod
from tests.live.sockets import PATIENCE_SECONDS, PORT, inside, listen, read_all

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.shared_programs
Pair = tuple[Pod, Pod]
ROUND_TRIP_MS = 20
MESSAGE = 100_000
MESSAGES = 4
SMALL_BUFFER = 8192
RWND_LIMITED = struct.Struct("=176xQ")  # tcpi_rwnd_limited in microseconds, linux/tcp.h
typed_and_plain = pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])


def over(path: LongPath, receive_buffer: int) -> AbstractContextManager[Ends]:
    """A connection over this path."""
    namespaces = path.near.namespace, path.far.namespace
    return connected(*namespaces, path.far.address, receive_buffer)


@contextmanager
def connected(
    of_near: Namespace, of_far: Namespace, address: str, receive_buffer: int
) -> Iterator[Ends]:
    """The near end has this receive buffer; 0: the one that the kernel adapts."""
    with listen(of_far, address) as listener, inside(of_near):
        near = socket.socket()
        with near:
            near.settimeout(PATIENCE_SECONDS)
            if receive_buffer:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            near.connect((address, PORT))
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE_SECONDS)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE)
                yield Ends(near, far)


def rwnd_limited_ns(end: socket.socket) -> int:
    """How long its kernel could not send for the peer's window alone."""
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RWND_LIMITED.size)
    return int(RWND_LIMITED.unpack(info)[0]) * 1000


def take_messages(ends: Ends) -> int:
    """The near end asks, and reads each answer; returns the nanoseconds of the answers."""
    began_ns = time.monotonic_ns()
    for _ in range(MESSAGES):
        ends.near.sendall(b"q" * 64)
        read_all(ends.far, 64)
        ends.far.sendall(bytes(MESSAGE))
        read_all(ends.near, MESSAGE)
    return time.monotonic_ns() - began_ns


def waited_ns(measured: Measurement) -> int:
    return measured.counters.get("ownWindowFullNs", 0)


@typed_and_plain
async def test_round_trips_that_a_small_receive_buffer_costs_are_counted_with_their_time(
    start_engine: Start, typed: bool
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = ROUND_TRIP_MS / 1e3
        path.wire.be_prompt()
        with over(path, SMALL_BUFFER) as ends:
            passed_ns = take_messages(ends)
            limited_ns = rwnd_limited_ns(ends.far)
        measured = engine.read()
    near = measured[NEAR]
    assert limited_ns > passed_ns / 4
    assert limited_ns / 2 < waited_ns(near) < passed_ns
    assert near.counters["ownWindowFull"] * ROUND_TRIP_MS * MS <= waited_ns(near) + limited_ns / 8
    assert waited_ns(measured.get(FAR, NOTHING)) == 0


@typed_and_plain
async def test_a_buffer_that_the_kernel_adapts_keeps_no_peer_waiting(
    start_engine: Start, typed: bool
) -> None:
    with long_path() as path:
        engine = await watch_both_ends(start_engine, path, typed=typed)
        path.wire.delay_s = ROUND_TRIP_MS / 1e3
        with over(path, 0) as ends:
            take_messages(ends)
            limited_ns = rwnd_limited_ns(ends.far)
        near = engine.read()[NEAR]
    assert waited_ns(near) <= limited_ns + 2 * ROUND_TRIP_MS * MS


async def test_a_near_peer_that_fills_the_window_is_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    near, far = pair
    engine = await watch(start_engine, near, far)
    with connected(near.namespace, far.namespace, far.address, SMALL_BUFFER) as ends:
        take_messages(ends)
    assert waited_ns(engine.read()[CLIENT]) == 0
