"""Datagrams: every one that is read is a sample, or known to be missing."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import NOTHING
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, account_for, count, watch
from tests.live.pods import Pod
from tests.live.sockets import PORT, drain, group_member, send_unread, udp_socket

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
REMEMBERED = 63  # one less than SEGMENTS, bpf/include/sockets.h: the next may be on its way
MSG_WAITFORONE = 0x10000

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


def received(engine: KernelEngine) -> tuple[int, int]:
    """(datagrams that the server has read and are samples, those known to be missing)."""
    measured = engine.read().get(SERVER, NOTHING)
    missing = sum(account_for(measured, stage)[1] for stage in ("rx.stack", "rx.socket"))
    return count(measured, "rx.total"), missing


async def test_a_burst_longer_than_our_memory_is_lost_but_for_its_end(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        send_unread(sending, reading, b"d", 200)
        assert drain(reading) == 200
    assert received(engine) == (REMEMBERED, 200 - REMEMBERED)


@pytest.mark.every_kernel
async def test_datagrams_that_the_kernel_drops_because_of_a_full_buffer_are_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        send_unread(sending, reading, b"d", 200)
        reads = drain(reading)
        assert 0 < reads < REMEMBERED
        assert received(engine) == (reads, 0)
        for _ in range(20):
            sending.sendto(b"d", (server.address, PORT))
            reading.recv(16)
    assert received(engine) == (20, 0)


async def test_empty_peeked_and_cut_datagrams_count_once_each(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        for _ in range(30):
            sending.sendto(b"", (server.address, PORT))
            reading.recv(16)
            sending.sendto(b"d" * 100, (server.address, PORT))
            reading.recv(100, socket.MSG_PEEK)
            reading.recv(100)
            sending.sendto(b"d" * 100, (server.address, PORT))
            reading.recv(10)
    samples, missing = received(engine)
    assert samples + missing == 90
    assert missing <= 2  # a reader that is awake can be faster than the news


@pytest.mark.every_kernel
async def test_a_connected_socket_is_measured_in_both_directions(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as answering,
        udp_socket(client.namespace) as asking,
    ):
        asking.connect((server.address, PORT))
        asking.send(b"hello")
        answering.connect(answering.recvfrom(16)[1])
        for _ in range(50):
            asking.send(b"q")
            answering.recv(16)
            answering.send(b"r")
            asking.recv(16)
    measured = engine.read()
    for slot, sent, came in ((CLIENT, 51, 50), (SERVER, 50, 51)):
        assert account_for(measured[slot], "tx.total") == (sent, 0)
        assert sum(account_for(measured[slot], "rx.socket")) == came
        assert not {"tx.socket", "tx.stack"} & measured[slot].stages.keys()
    reasons = {stage.name: stage.reason for stage in engine.coverage}
    for name in ("tx.socket", "tx.stack"):
        assert "absent for datagrams" in reasons[name]


async def test_many_datagrams_in_one_call_count_one_by_one(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        send_unread(sending, reading, b"d" * 8, 40)
        assert receive_many(reading, 64) == 40
    assert received(engine) == (40, 0)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr, recvmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vectors_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr, recvmmsg(2)."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint32))


def receive_many(reading: socket.socket, most: int) -> int:
    """recvmmsg(2), which Python does not know."""
    room = ctypes.create_string_buffer(16)
    vector = _Vector(ctypes.cast(room, ctypes.c_void_p), len(room))
    messages = (_Message * most)(
        *(_Message(_Header(vectors=ctypes.pointer(vector), vectors_length=1)) for _ in range(most))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    count = libc.recvmmsg(reading.fileno(), messages, most, MSG_WAITFORONE, None)
    if count < 0:
        raise OSError(ctypes.get_errno(), "recvmmsg")
    return int(count)


FEW_TWICE = 2  # of thousands


async def test_senders_and_readers_at_the_same_time_are_all_accounted_for(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    reads = [0, 0]
    with udp_socket(server.namespace, server.address, PORT) as reading:

        def read(number: int) -> None:
            while reading.recv(16) != b"end":
                reads[number] += 1
            reads[number] += 1

        def send() -> None:
            with udp_socket(client.namespace) as sending:
                for _ in range(1000):
                    sending.sendto(b"d", (server.address, PORT))

        readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        senders = [threading.Thread(target=send) for _ in range(3)]
        for thread in (*readers, *senders):
            thread.start()
        for thread in senders:
            thread.join()
        with udp_socket(client.namespace) as ending:
            while any(reader.is_alive() for reader in readers):
                ending.sendto(b"end", (server.address, PORT))
                for reader in readers:
                    reader.join(0.01)
        left = drain(reading)
    samples, unmatched = received(engine)
    # Without a lock, two readers at one instant may count one as unmatched that has a sample.
    assert 0 <= samples + unmatched - (sum(reads) + left) <= FEW_TWICE


async def test_members_of_a_group_have_one_sample_and_the_rest_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for pod in pair:
        pod.namespace.ip("route", "add", "239.0.0.0/8", "dev", "eth0")
    group = "239.1.1.1"
    with (
        group_member(server.namespace, server.address, group) as one,
        group_member(server.namespace, server.address, group) as other,
        udp_socket(client.namespace) as sending,
    ):
        for _ in range(50):
            sending.sendto(b"d", (group, PORT))
            one.recv(16)
            other.recv(16)
    samples, missing = received(engine)
    assert samples + missing == 100
    assert samples >= 45


async def test_broadcasts_are_measured(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, "0.0.0.0", PORT) as reading,
        udp_socket(client.namespace, client.address, 0) as sending,
    ):
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(50):
            sending.sendto(b"d", ("198.51.100.255", PORT))
            reading.recv(16)
    assert sum(received(engine)) == 50
