"""The ways in which an application takes bytes from a TCP socket: each ends rx.socket, once.

The reader says itself when it took them: a wait that it made is a lower limit of what we measure.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import (
    CLIENT,
    SERVER,
    account_for,
    assert_parts_add_up,
    count,
    watch,
)
from tests.live.pods import Pod
from tests.live.sockets import open_between, read_all, wait_for_bytes

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
Pipe = tuple[int, int]

MS = 1_000_000
LATE_MS = 3
PAGE = mmap.PAGESIZE
# A segment's data are whole pages: less the headers of IPv4, and of TCP with time stamps.
MTU_OF_TWO_PAGES = 2 * PAGE + 20 + 32
TCP_ZEROCOPY_RECEIVE = 35  # linux/tcp.h
ZEROCOPY_RECEIVE = struct.Struct("=QIIIiQiI")  # struct tcp_zerocopy_receive, to `flags`
_libc = ctypes.CDLL(None, use_errno=True)

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """(out, into)"""
    out, into = os.pipe()
    yield out, into
    os.close(out)
    os.close(into)


@contextmanager
def late(waits_ns: list[int]) -> Iterator[None]:
    """A reader that comes late; adds how long it surely was."""
    began = time.monotonic_ns()
    time.sleep(LATE_MS / 1e3)
    waits_ns.append(time.monotonic_ns() - began)
    yield


def splice(end: socket.socket, pipe: Pipe) -> int:
    """How much there was to splice; 0 at the end of the stream."""
    out, into = pipe
    length = os.splice(end.fileno(), into, 1000)
    return len(os.read(out, length)) if length else 0


def receive(end: socket.socket, _: Pipe) -> int:
    """The same with a copy."""
    return len(end.recv(1000))


def taken(engine: KernelEngine) -> Measurement:
    return engine.read().get(SERVER, NOTHING)


def assert_late_by(measured: Measurement, waits_ns: list[int]) -> None:
    """Each read has its sample, which is no shorter than what its reader waited."""
    for stage in ("rx.stack", "rx.socket", "rx.total"):
        assert_all_were_seen(measured, stage, len(waits_ns))
    wait = measured.stage("rx.socket").histogram
    seen_ns = sorted(waits_ns)[: wait.count]  # the longest may be of the one that was hidden
    assert wait.min_ns >= seen_ns[0]
    assert wait.max_ns >= seen_ns[-1]
    assert wait.sum_ns >= sum(seen_ns)
    assert_parts_add_up(measured, "rx")


def assert_all_were_seen(measured: Measurement, stage: str, segments: int) -> None:
    """Each segment has its sample.

    One that a softirq receives which interrupts a thread hidden from tracers is hidden too. Then
    nothing else is missing.
    """
    samples, missing = account_for(measured, stage)
    assert samples in counts_of(segments), stage
    assert samples + missing <= segments, stage


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_proxy_that_splices_late_is_a_late_reader(
    start_engine: Start, pair: Pair, pipe: Pipe, typed: bool
) -> None:
    client, server = pair
    out, into = pipe
    engine = await watch(start_engine, client, server, typed=typed)
    waits_ns: list[int] = []
    with open_between(client, server) as both:
        for _ in range(300):
            both.client.sendall(b"q" * 64)
            wait_for_bytes(both.server, 64)
            with late(waits_ns):
                assert os.splice(both.server.fileno(), into, 64) == 64
            assert os.splice(out, both.server.fileno(), 64) == 64
            read_all(both.client, 64)
    assert_late_by(taken(engine), waits_ns)


@pytest.mark.every_kernel
async def test_a_peek_leaves_the_wait_to_the_read(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    waits_ns: list[int] = []
    with open_between(client, server) as both:
        for _ in range(20):
            both.client.sendall(b"q" * 64)
            wait_for_bytes(both.server, 64)
            assert both.server.recv(10, socket.MSG_PEEK)
            with late(waits_ns):
                read_all(both.server, 64)
    assert_late_by(taken(engine), waits_ns)


@pytest.mark.every_kernel
async def test_every_kind_of_read_in_turns_counts_each_segment_once(
    start_engine: Start, pair: Pair, pipe: Pipe
) -> None:
    client, server = pair
    out, into = pipe
    engine = await watch(start_engine, client, server)
    rounds = 20
    with open_between(client, server) as both:
        for _ in range(rounds):
            for sent in range(1, 7):
                both.client.sendall(b"q" * 100)
                wait_for_bytes(both.server, 100 * sent)  # else two may be sent as one
            both.server.recv(150, socket.MSG_PEEK)
            read_all(both.server, 150, 50)  # ends in the middle of the second
            assert len(os.read(out, os.splice(both.server.fileno(), into, 100))) == 100
            both.server.recv(100, socket.MSG_TRUNC)
            both.server.recv(250, socket.MSG_WAITALL)
    assert_all_were_seen(taken(engine), "rx.socket", 6 * rounds)


@pytest.mark.every_kernel
async def test_a_read_that_waits_for_all_takes_each_segment_when_it_comes(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        reading = threading.Thread(target=both.server.recv, args=(50 * 100, socket.MSG_WAITALL))
        reading.start()
        for _ in range(50):
            both.client.sendall(b"q" * 100)
        reading.join()
    measured = engine.read()
    # Fewer where the backlog of a locked socket merges them: tcp_add_backlog().
    samples, missing = account_for(measured[SERVER], "rx.socket")
    assert missing == 0
    assert 0 < samples <= count(measured[CLIENT], "tx.total")


@pytest.mark.every_kernel
async def test_the_end_of_the_stream_is_no_segment(
    start_engine: Start, pair: Pair, pipe: Pipe
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for is_spliced in (True, False):
        for is_end_alone in (True, False):
            with open_between(client, server) as both:
                both.client.sendall(b"q" * 100)
                if is_end_alone:
                    wait_for_bytes(both.server, 100)
                    read_all(both.server, 100)
                both.client.shutdown(socket.SHUT_WR)
                read = splice if is_spliced else receive
                while length := read(both.server, pipe):
                    assert length == 100
                both.server.sendall(b"r")
                read_all(both.client, 1)
    assert account_for(taken(engine), "rx.socket") == (4, 0)


@contextmanager
def mapped(end: socket.socket, length: int) -> Iterator[int]:
    """An area for pages of a socket's queue: its address. Module mmap would not tell it."""
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(
        None,
        ctypes.c_size_t(length),
        *(mmap.PROT_READ, mmap.MAP_SHARED, end.fileno()),
        ctypes.c_long(0),
    )
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        yield address
    finally:
        _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))


def zero_copy_receive(end: socket.socket, address: int, length: int) -> tuple[int, int]:
    """Map what is there: (bytes mapped, bytes that only a copy can take)."""
    asked = ctypes.create_string_buffer(
        ZEROCOPY_RECEIVE.pack(address, length, 0, 0, 0, 0, 0, 0), ZEROCOPY_RECEIVE.size
    )
    size = ctypes.c_uint32(len(asked))
    answer = _libc.getsockopt(
        end.fileno(), socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, asked, ctypes.byref(size)
    )
    if answer:
        raise OSError(ctypes.get_errno(), "getsockopt(TCP_ZEROCOPY_RECEIVE)")
    _, now_mapped, to_copy, *_ = ZEROCOPY_RECEIVE.unpack(asked.raw)
    return now_mapped, to_copy


async def test_pages_that_are_mapped_are_read(start_engine: Start, pair: Pair, pipe: Pipe) -> None:
    client, server = pair
    out, into = pipe
    for pod in pair:
        pod.namespace.ip("link", "set", "eth0", "mtu", str(MTU_OF_TWO_PAGES))
    engine = await watch(start_engine, client, server)
    waits_ns: list[int] = []
    with open_between(client, server) as both, mapped(both.server, 2 * PAGE) as address:
        for _ in range(20):
            # Whole pages of a pipe stay as they are up to the receiver: MSG_SPLICE_PAGES.
            for letter in (b"a", b"b"):
                assert os.write(into, letter * PAGE) == PAGE
            assert os.splice(out, both.client.fileno(), 2 * PAGE) == 2 * PAGE
            wait_for_bytes(both.server, 2 * PAGE)
            with late(waits_ns):
                assert zero_copy_receive(both.server, address, 2 * PAGE) == (2 * PAGE, 0)
            assert ctypes.string_at(address, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE
    assert_late_by(taken(engine), waits_ns)
