"""What is pending: waiting that has not ended, as the sockets themselves tell of it."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fcntl import ioctl
from ipaddress import ip_address

import pytest

from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import (
    CONNECTS,
    LEAST_PATIENCE_NS,
    MISSING_ANSWERS,
    RESENT,
    STUCK_REQUESTS,
)
from latencyprobe.domain.pending import Pending
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import CLIENT, SERVER, watch
from tests.live.netfilter import load_rules
from tests.live.pending_readings import both_pending, connections, is_unavailable, peers, pending
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    connect,
    everything_in,
    exchange,
    inside,
    listen,
    open_between,
    read_all,
    wait_for_bytes,
    waiting_bytes,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
pytestmark = pytest.mark.every_kernel

READERS, SEGMENTS, SEGMENT = 20, 10, b"s" * 200
SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that were not sent yet
LONGEST_TICK_S = 0.01  # CONFIG_HZ=100
STATE, RETRANSMITS = 0, 2  # bytes of struct tcp_info, linux/tcp.h
CLOSE_WAIT = 8  # include/net/tcp_states.h
DROP_SYN = """
table ip pending {
  chain output {
    type filter hook output priority 0;
    tcp dport 7000 tcp flags & (syn | ack) == syn drop
  }
}
"""
DROP_ALL = """
table ip pending {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 drop
  }
}
"""


class Age:
    """The bounds of an age: it begins between two moments, and is read between two others."""

    def __init__(self) -> None:
        self._earliest = time.monotonic_ns()
        self._latest = self._earliest

    def begun(self) -> None:
        """It has begun by now."""
        self._latest = time.monotonic_ns()

    def read(self, engine: KernelEngine, slot: int) -> Mapping[str, Pending]:
        """Read what is pending, between two moments."""
        self._read_from = time.monotonic_ns()
        found = pending(engine, slot)
        self._read_until = time.monotonic_ns()
        return found

    def assert_is(self, age_ns: int, *, early_ns: int = 0) -> None:
        """`early_ns`: how much shorter it may be."""
        assert self._read_from - self._latest - early_ns <= age_ns
        assert age_ns <= self._read_until - self._earliest

    def assert_is_nearly(self, age_ns: int) -> None:
        """Of an age in ticks, whose length was measured over 64 of them."""
        ticks_ns = round(3 * LONGEST_TICK_S * 1e9)
        assert 0.9 * (self._read_from - self._latest) - ticks_ns <= age_ns
        assert age_ns <= 1.1 * (self._read_until - self._earliest) + ticks_ns


@pytest.mark.unscoped
async def test_a_reader_that_hangs_is_seen_with_all_its_segments(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, READERS) as opened:
        age = Age()
        for each in opened:
            for sent in range(1, SEGMENTS + 1):
                each.client.sendall(SEGMENT)
                wait_for_bytes(each.server, sent * len(SEGMENT))  # else two may be sent as one
            if each is opened[0]:
                age.begun()
        found = age.read(engine, SERVER)

        unread = found["unreadSegments"]
        assert unread.bytes == sum(waiting_bytes(each.server) for each in opened)
        assert unread.count in counts_of(READERS * SEGMENTS)
        assert unread.sockets == READERS
        age.assert_is(unread.oldest_ns)
        assert unread.oldest_ns <= unread.waiting_ns <= unread.count * unread.oldest_ns

        for each in opened:
            read_all(each.server, SEGMENTS * len(SEGMENT))
        assert "unreadSegments" not in pending(engine, SERVER)


@pytest.mark.unscoped
async def test_the_rest_of_a_segment_counts_in_bytes(start_engine: Start, pair: Pair) -> None:
    """It has the age of the last data that came, once the length of a tick is known."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        both.client.sendall(SEGMENT)
        wait_for_bytes(both.server, len(SEGMENT))
        age = Age()
        both.client.sendall(SEGMENT)
        wait_for_bytes(both.server, 2 * len(SEGMENT))
        age.begun()
        both.server.recv(50)
        unread = pending(engine, SERVER)["unreadSegments"]
        assert (unread.count, unread.sockets) == (1, 1)
        assert unread.bytes == waiting_bytes(both.server) == 350
        both.server.recv(250)
        measure_ticks(engine)
        unread = age.read(engine, SERVER)["unreadSegments"]
        assert unread.count == 1
        assert unread.bytes == waiting_bytes(both.server) == 100
        age.assert_is_nearly(unread.oldest_ns)


@pytest.mark.unscoped
async def test_a_request_without_an_answer_is_seen_from_both_ends(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        exchange(both, 3)
        asked, taken = Age(), Age()
        both.client.sendall(b"q" * 64)
        asked.begun()
        read_all(both.server, 64)
        taken.begun()
        of_client = asked.read(engine, CLIENT)
        of_server = taken.read(engine, SERVER)

        for found, kind, late in (
            (of_client, "unansweredRequests", MISSING_ANSWERS),
            (of_server, "requestsInService", STUCK_REQUESTS),
        ):
            assert {kind} <= found.keys() <= {kind} | kinds_of_age(found[kind], late)
        for request, age in (
            (of_client["unansweredRequests"], asked),
            (of_server["requestsInService"], taken),
        ):
            assert (request.count, request.sockets, request.bytes) == (1, 1, 0)
            age.assert_is(request.oldest_ns)
            assert request.waiting_ns == request.oldest_ns

        both.server.sendall(b"r" * 64)
        read_all(both.client, 64)
        assert both_pending(engine) == ({}, {})


async def test_a_connect_without_an_answer_is_seen(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    load_rules(client, DROP_SYN)
    age = Age()
    with inside(client.namespace):
        asking = socket.socket()
    with asking:
        asking.setblocking(False)
        asking.connect_ex((server.address, PORT))
        age.begun()
        found = age.read(engine, CLIENT)
        assert found.keys() == {"unansweredConnects"}
        connects = found["unansweredConnects"]
        assert (connects.count, connects.sockets) == (1, 1)
        age.assert_is(connects.oldest_ns)
    assert pending(engine, CLIENT) == {}


async def test_a_connect_that_waits_for_a_second_names_its_peer(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    load_rules(client, DROP_SYN)
    with inside(client.namespace), ExitStack() as stack:
        for _ in range(2):
            asking = stack.enter_context(socket.socket())
            asking.setblocking(False)
            asking.connect_ex((server.address, PORT))
        began_ns = time.monotonic_ns()
        at_first = silent(engine, CONNECTS)
        assert at_first == [] or time.monotonic_ns() - began_ns > LEAST_PATIENCE_NS
        await asyncio.sleep(LEAST_PATIENCE_NS / 1e9)
        assert silent(engine, CONNECTS) == [(Endpoint(ip_address(server.address), PORT), 2)]
    assert silent(engine, CONNECTS) == []


def silent(engine: KernelEngine, kind: str) -> list[tuple[Endpoint, int]]:
    """The client's peers that do not acknowledge, and the number of what waits for each."""
    return [(each.address, each.count) for each in peers(engine) if each.kind == kind]


async def test_unaccepted_connections_are_seen_with_their_data(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with listen(server.namespace, server.address) as listener, ExitStack() as stack:
        age = Age()
        made = []
        for _ in range(3):
            made.append(stack.enter_context(connect(client.namespace, server.address)))
            if len(made) == 1:
                age.begun()
        made[0].sendall(SEGMENT)
        await _until(lambda: "unreadSegments" in pending(engine, SERVER))
        found = age.read(engine, SERVER)

        assert found.keys() == {"unacceptedConnections", "unreadSegments"}
        waiting = found["unacceptedConnections"]
        assert (waiting.count, waiting.sockets) == (3, 3)
        # the client is ahead of the server by the handshake's last ACK
        age.assert_is(waiting.oldest_ns, early_ns=10**9)
        unread = found["unreadSegments"]
        assert (unread.count, unread.sockets, unread.bytes) == (1, 1, len(SEGMENT))

        accepted = [stack.enter_context(listener.accept()[0]) for _ in made]
        read_all(accepted[0], len(SEGMENT))
        assert pending(engine, SERVER).keys() <= {"requestsInService"}


@pytest.mark.unscoped
async def test_a_pooled_connection_in_a_black_hole_is_seen(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        exchange(both, 3)
        load_rules(server, DROP_ALL)
        age = Age()
        both.client.sendall(b"q" * 64)
        await _until(lambda: _retransmits(both.client) > 0)
        found = age.read(engine, CLIENT)

        asked = found["unansweredRequests"]
        late = kinds_of_age(asked, MISSING_ANSWERS)  # it was not acknowledged
        assert found.keys() == {"unacknowledgedRetransmits", "unansweredRequests"} | late
        lost = found["unacknowledgedRetransmits"]
        assert (lost.count, lost.sockets, lost.bytes) == (1, 1, 64)
        # since the first transmission
        assert 0 <= lost.oldest_ns < asked.oldest_ns
        await asyncio.sleep(LEAST_PATIENCE_NS / 1e9)
        assert silent(engine, RESENT) == [(Endpoint(ip_address(server.address), PORT), 1)]
        both.server.close()


@pytest.mark.unscoped
async def test_bytes_behind_a_closed_window_are_seen(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        both.client.setblocking(False)
        age = Age()
        try:
            while True:
                both.client.send(b"b" * 65536)
        except BlockingIOError:
            age.begun()
        await _until_settled(lambda: _unsent_bytes(both.client))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:  # a timer may let a part of them go at any time
                still_unsent = _unsent_bytes(both.client)
                found = age.read(engine, CLIENT)
                if _unsent_bytes(both.client) == still_unsent:
                    break
                await asyncio.sleep(0.02)
        unsent = found["unsentWrites"]
        assert unsent.bytes == still_unsent > 0
        assert unsent.sockets == 1
        assert unsent.count >= 1
        age.assert_is(unsent.oldest_ns, early_ns=10**12)
        assert unsent.oldest_ns > 0


async def test_an_idle_pool_and_its_listener_wait_for_nothing(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 5) as opened:
        for each in opened:
            exchange(each, 2)
        await _until_settled(lambda: len(str(both_pending(engine))))
        assert both_pending(engine) == ({}, {})
        opened[0].client.close()
        read_end = opened[0].server.recv(1)
        assert read_end == b""
        assert both_pending(engine) == ({}, {})


@pytest.mark.unscoped
async def test_sockets_of_a_process_are_found_by_its_files(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    inodes = frozenset({client.namespace.inode, server.namespace.inode})
    by_process = SlotSpec(tgids=frozenset({os.getpid()}), netns=inodes)
    engine.assign({0: by_process, 1: everything_in(server)})
    with open_between(client, server) as both, both.server.dup():
        both.client.sendall(SEGMENT)
        wait_for_bytes(both.server, len(SEGMENT))
        read = engine.read()
        for slot in (0, 1):  # once, though two descriptors lead there
            unread = (read[slot].pending or {})["unreadSegments"]
            assert (unread.count, unread.sockets, unread.bytes) == (1, 1, len(SEGMENT))
            assert unread.oldest_ns > 0
        engine.assign({0: by_process})  # a change of targets, and no packet since
        unread = pending(engine, 0)["unreadSegments"]
        assert (unread.count, unread.sockets, unread.bytes) == (1, 1, len(SEGMENT))


@pytest.mark.unscoped
@pytest.mark.parametrize(("size", "count"), [(31, 0), (300, 1)], ids=["a goodbye", "an answer"])
async def test_last_bytes_of_a_server_that_closed_are_unread_unless_they_are_a_goodbye(
    start_engine: Start, pair: Pair, size: int, count: int
) -> None:
    """A server ends a connection of an idle pool, with close_notify of TLS."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        exchange(both, 3)
        both.server.sendall(b"e" * size)
        both.server.close()
        await _until(lambda: _tcp_info(both.client)[STATE] == CLOSE_WAIT)
        assert waiting_bytes(both.client) == size
        found = pending(engine, CLIENT).get("unreadSegments", Pending(0))
        assert (found.count, found.bytes) == (count, count * size)


@pytest.mark.unscoped
async def test_a_short_request_of_a_client_that_has_closed_is_unread(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        exchange(both, 3)
        both.client.sendall(b"q" * 31)
        both.client.close()
        await _until(lambda: _tcp_info(both.server)[STATE] == CLOSE_WAIT)
        unread = pending(engine, SERVER)["unreadSegments"]
        assert (unread.count, unread.bytes) == (1, 31)


def measure_ticks(engine: KernelEngine) -> None:
    """The length of the kernel's ticks is known from the second of two readings on."""
    engine.read()
    time.sleep(64 * LONGEST_TICK_S)


@pytest.mark.unscoped
async def test_data_from_before_the_measurement_is_as_old_as_it_is(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    with open_between(client, server) as both:
        age = Age()
        both.client.sendall(SEGMENT)
        wait_for_bytes(both.server, len(SEGMENT))
        age.begun()
        engine = await watch(start_engine, client, server)
        if is_unavailable(engine):
            return
        measure_ticks(engine)
        found = age.read(engine, SERVER)
        assert found.keys() == {"unreadSegments"}
        unread = found["unreadSegments"]
        assert (unread.count, unread.sockets, unread.bytes) == (1, 1, len(SEGMENT))
        age.assert_is_nearly(unread.oldest_ns)
        assert unread.waiting_ns == unread.oldest_ns


@pytest.mark.unscoped
async def test_an_accept_queue_from_before_the_measurement_is_as_old_as_it_is(
    start_engine: Start, pair: Pair
) -> None:
    """One connection has data; a later one is seen from its handshake on."""
    client, server = pair
    with listen(server.namespace, server.address) as listener, ExitStack() as stack:
        age = Age()
        made = [stack.enter_context(connect(client.namespace, server.address)) for _ in range(2)]
        made[0].sendall(SEGMENT)
        age.begun()
        engine = await watch(start_engine, client, server)
        if is_unavailable(engine):
            return
        made.append(stack.enter_context(connect(client.namespace, server.address)))
        measure_ticks(engine)
        found = age.read(engine, SERVER)

        assert found.keys() == {"unacceptedConnections", "unreadSegments"}
        waiting = found["unacceptedConnections"]
        assert (waiting.count, waiting.sockets) == (3, 3)
        age.assert_is_nearly(waiting.oldest_ns)
        unread = found["unreadSegments"]
        assert (unread.count, unread.sockets, unread.bytes) == (1, 1, len(SEGMENT))
        age.assert_is_nearly(unread.oldest_ns)

        for _ in made:
            stack.enter_context(listener.accept()[0])
        assert "unacceptedConnections" not in pending(engine, SERVER)


@pytest.mark.unscoped
async def test_the_end_of_all_waiting_is_reported_once(start_engine: Start, pair: Pair) -> None:
    """So that a sum over readings does not keep what has ended."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with open_between(client, server) as both:
        both.client.sendall(SEGMENT)
        wait_for_bytes(both.server, len(SEGMENT))
        assert pending(engine, SERVER)
        read_all(both.server, len(SEGMENT))
        both.server.sendall(b"r")
        read_all(both.client, 1)
        assert engine.read()[SERVER].pending == {}
        assert engine.read().get(SERVER, NOTHING).pending is None


def kinds_of_age(request: Pending, late: str) -> set[str]:
    """What may be said of a request, too, once it is older than the least patience."""
    return {late} if request.oldest_ns > LEAST_PATIENCE_NS else set()


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await asyncio.sleep(0.02)


async def _until_settled(figure: Callable[[], int]) -> None:
    """Return when a figure was the same ten times in a row."""
    same, before = 0, figure()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while same < 10:
            await asyncio.sleep(0.02)
            now = figure()
            same = same + 1 if now == before else 0
            before = now


def _retransmits(end: socket.socket) -> int:
    """The retransmission time-outs in a row."""
    return _tcp_info(end)[RETRANSMITS]


def _tcp_info(end: socket.socket) -> bytes:
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)


def _unsent_bytes(end: socket.socket) -> int:
    answer = bytearray(4)
    ioctl(end.fileno(), SIOCOUTQNSD, answer)
    return int(struct.unpack("=i", answer)[0])
