"""Datagrams that wait to be read: of a server that hangs, and those that no process wants."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.pending import Pending
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, watch
from tests.live.pending_readings import pending
from tests.live.pods import Pod
from tests.live.sockets import (
    PORT,
    drain,
    everything_in,
    group_member,
    send_unread,
    udp_socket,
)
from tests.live.targets import until

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]

KIND = "unreadSegments"
AGED = 4  # AGED_DATAGRAMS, bpf/modules/pending.bpf.c
NOTHING = Pending(0)
GROUP = "239.1.1.1"


def unread(engine: KernelEngine, slot: int = SERVER) -> Pending:
    """What is unread in a slot now."""
    return pending(engine, slot).get(KIND, NOTHING)


def is_measured(engine: KernelEngine) -> bool:
    """Whether this kernel shows which datagrams are a server's: as udp.response does."""
    (row,) = (each for each in engine.coverage if each.name == "udp.response")
    return row.state is CoverageState.ACTIVE


@contextmanager
def both_ends(
    client: Pod, server: Pod, port: int = PORT
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket, and a server's."""
    with (
        udp_socket(client.namespace) as asking,
        udp_socket(server.namespace, server.address, port) as answering,
    ):
        asking.connect(answering.getsockname())
        yield asking, answering


def exchange(asking: socket.socket, answering: socket.socket, replies: int = 1) -> None:
    """A question and its replies, the first of which is read."""
    asking.send(b"question")
    question, sender = answering.recvfrom(64)
    for _ in range(replies):
        answering.sendto(question, sender)
    asking.recv(64)


@pytest.mark.every_kernel
@pytest.mark.parametrize("count", [1, 4, 40, 100])
async def test_datagrams_that_a_server_has_stopped_reading_are_as_old_as_they_are(
    start_engine: Start, pair: Pair, count: int
) -> None:
    """Of a queue that is longer than our memory, the age is that of a later one."""
    engine = await watch(start_engine, *pair)
    with both_ends(*pair) as (asking, answering):
        exchange(asking, answering)
        assert unread(engine) == NOTHING
        sent_from_ns = time.monotonic_ns()
        send_unread(asking, answering, b"question", count)
        came_ns = time.monotonic_ns()
        if not is_measured(engine):
            assert unread(engine) == NOTHING
            return
        until(lambda: unread(engine).oldest_ns, "the last datagram is known")
        read_from_ns = time.monotonic_ns()
        found = unread(engine)
        read_until_ns = time.monotonic_ns()
        assert (found.count, found.sockets, found.bytes) == (count, 1, 0)
        assert read_from_ns - came_ns <= found.oldest_ns <= read_until_ns - sent_from_ns
        aged = min(count, AGED)
        assert found.oldest_ns <= found.waiting_ns <= aged * found.oldest_ns
        assert found.waiting_ns >= aged * (read_from_ns - came_ns)

        assert drain(answering) == count
        assert unread(engine) == NOTHING


async def test_the_age_is_that_of_the_oldest_datagram(start_engine: Start, pair: Pair) -> None:
    engine = await watch(start_engine, *pair)
    with both_ends(*pair) as (asking, answering):
        exchange(asking, answering)
        send_unread(asking, answering, b"question", 3)
        until(lambda: unread(engine).oldest_ns, "the last datagram is known")
        of_all = unread(engine)
        answering.recv(64)
        of_rest = unread(engine)
        assert (of_all.count, of_rest.count) == (3, 2)
        assert of_rest.waiting_ns < 2 * of_rest.oldest_ns  # the later one is younger


async def test_a_datagram_that_came_in_fragments_has_no_age(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with both_ends(*pair) as (asking, answering):
        exchange(asking, answering)
        send_unread(asking, answering, bytes(4000), 3)
        assert unread(engine).oldest_ns == 0
        if not is_measured(engine):
            return
        sent_from_ns = time.monotonic_ns()
        send_unread(asking, answering, b"question", 1)
        until(lambda: unread(engine).oldest_ns, "the whole datagram is known")
        found = unread(engine)
        assert found.oldest_ns <= time.monotonic_ns() - sent_from_ns


async def test_datagrams_for_a_process_are_found_by_its_files(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    inodes = frozenset({server.namespace.inode})
    by_process = SlotSpec(tgids=frozenset({os.getpid()}), netns=inodes)
    engine.assign({CLIENT: by_process, SERVER: everything_in(server)})
    with both_ends(client, server) as (asking, answering), answering.dup():
        exchange(asking, answering)
        send_unread(asking, answering, b"question", 3)
        until(lambda: unread(engine).oldest_ns, "the last datagram is known")
        for slot in (CLIENT, SERVER):  # once, though two descriptors lead there
            found = unread(engine, slot)
            assert (found.count, found.sockets) == (3, 1)
            assert found.oldest_ns > 0


async def test_datagrams_of_a_socket_that_was_never_read_have_no_age(
    start_engine: Start, pair: Pair
) -> None:
    """It may have hung before the measurement began, or no process wants them."""
    engine = await watch(start_engine, *pair)
    with both_ends(*pair) as (asking, answering):
        send_unread(asking, answering, b"question", 10)
        until(lambda: unread(engine).count, "the datagrams are known")
        assert unread(engine) == Pending(10, 1)
        answering.recv(64)
        assert unread(engine).count == 9
        assert unread(engine).oldest_ns > 0


@pytest.mark.parametrize("is_bound", [False, True], ids=["any port", "its own port"])
async def test_a_reply_that_its_client_does_not_read_is_not_counted(
    start_engine: Start, pair: Pair, is_bound: bool
) -> None:
    """Several servers were asked and one reply is enough, or the client had given up."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with both_ends(client, server) as (_, answering):
        port = PORT if is_bound else 0
        with udp_socket(client.namespace, client.address, port) as asking:
            asking.connect(answering.getsockname())
            exchange(asking, answering)
            exchange(asking, answering, replies=3)
            asking.recv(64, socket.MSG_PEEK)
            assert unread(engine, CLIENT) == NOTHING


async def test_a_reply_to_a_client_that_asked_before_the_measurement_is_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    """Its socket was seen to receive first, but the kernel has chosen its port."""
    with both_ends(*pair) as (asking, answering):
        asking.send(b"question")
        question, sender = answering.recvfrom(64)
        engine = await watch(start_engine, *pair)
        for _ in range(3):
            answering.sendto(question, sender)
        asking.recv(64)
        asking.recv(64, socket.MSG_PEEK)
        assert unread(engine, CLIENT) == NOTHING


async def test_multicasts_that_are_not_read_are_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for pod in pair:
        pod.namespace.ip("route", "add", "239.0.0.0/8", "dev", "eth0")
    with (
        group_member(server.namespace, server.address, GROUP) as member,
        udp_socket(client.namespace) as sending,
    ):
        for _ in range(5):
            sending.sendto(b"news", (GROUP, PORT))
        member.recv(64)
        member.recv(64, socket.MSG_PEEK)
        assert unread(engine) == NOTHING
        sending.sendto(b"question", (server.address, PORT))
        for _ in range(4):
            member.recv(64)
        until(lambda: unread(engine).count, "the question waits for the server")
