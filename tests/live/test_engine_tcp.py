"""TCP against odd readers and odd networks: what is measured, and what is counted as missing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import MOST_HIDDEN
from tests.live.measuring import CLIENT, SERVER, account_for, count, watch
from tests.live.netfilter import load_rules
from tests.live.pods import Pod
from tests.live.sockets import (
    Connection,
    connect,
    connection,
    everything_in,
    inside,
    listen,
    open_between,
    read_all,
    sent_again,
    tcp_figures,
    wait_for_bytes,
    wait_until_acknowledged,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]

DROP_SECOND_REQUEST = """
table inet lossy {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 tcp flags & psh == psh numgen inc mod 1000 == 1 drop
  }
}
"""

pytestmark = pytest.mark.shared_programs


def taken(engine: KernelEngine, slot: int) -> Measurement:
    return engine.read().get(slot, NOTHING)


def rx(measurement: Measurement) -> tuple[int, int]:
    """(samples of rx.total, segments known to be missing from them)."""
    _, missing_at_socket = account_for(measurement, "rx.socket")
    _, missing_before = account_for(measurement, "rx.stack")
    return count(measurement, "rx.total"), missing_at_socket + missing_before


async def test_bulk_is_accounted_for_segment_by_segment(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    amount = 16 << 20
    with open_between(client, server) as both:
        sending = threading.Thread(target=both.client.sendall, args=(bytes(amount),))
        sending.start()
        read_all(both.server, amount, 4096)  # slower than the sender
        sending.join()
    measured = engine.read()
    sent = count(measured[CLIENT], "tx.total")
    samples, missing = rx(measured[SERVER])
    again = sent_again(client.namespace)  # sent twice, received once
    # A sender that changes its CPU may overtake itself: what comes too early is counted apart. What
    # waits in the backlog of a locked socket is merged before TCP sees it: tcp_add_backlog().
    early = measured[SERVER].counters.get("headOfLineSegments", 0)
    merged = tcp_figures(server.namespace)["TCPBacklogCoalesce"]
    # On a machine that hides threads from tracers, what such a thread's softirq receives is hidden:
    # up to 1.1 % were seen. The first byte that is read of several such is unmatched.
    hidden = sent - samples - missing - early - merged
    unmatched = measured[SERVER].stage("rx.socket").unmatched
    assert hidden >= 0
    assert hidden + unmatched <= early + again + sent // 50
    assert MOST_HIDDEN or unmatched == 0
    assert sent > 100
    assert samples > missing


async def test_thousands_of_short_connections_leave_nothing_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        for _ in range(3000):
            with connect(client.namespace, server.address) as asking:
                answering, _ = listener.accept()
                with answering:
                    asking.sendall(b"q" * 64)
                    read_all(answering, 64)
                    answering.sendall(b"r" * 64)
                    read_all(asking, 64)
    measured = engine.read()
    for slot in (CLIENT, SERVER):
        for stage in ("rx.stack", "rx.socket", "rx.total", "tx.total"):
            assert account_for(measured[slot], stage) == (3000, 0), stage
    assert count(measured[CLIENT], "tcp.connect") == 3000
    assert count(measured[SERVER], "tcp.handshake") == 3000


@pytest.mark.every_kernel
async def test_a_segment_read_in_pieces_counts_once(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(b"x" * 1000)
        wait_for_bytes(both.server, 1000)
        assert read_all(both.server, 1000, 10) == 100
    assert rx(taken(engine, SERVER)) == (1, 0)


@pytest.mark.every_kernel
async def test_a_peek_is_no_read_and_counts_nothing(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        for _ in range(50):
            both.client.sendall(b"x" * 100)
            wait_for_bytes(both.server, 100)
            both.server.recv(100, socket.MSG_PEEK)
            both.server.recv(30, socket.MSG_PEEK)
            read_all(both.server, 100)
    assert rx(taken(engine, SERVER)) == (50, 0)


@pytest.mark.every_kernel
async def test_bytes_thrown_away_unread_are_measured(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        for _ in range(200):
            both.client.sendall(b"x" * 100)
            wait_for_bytes(both.server, 100)
            both.server.recv(100, socket.MSG_TRUNC)
        both.client.sendall(b"x" * 100)
        wait_for_bytes(both.server, 100)
        read_all(both.server, 100)
    assert rx(taken(engine, SERVER)) == (201, 0)


@pytest.mark.every_kernel
async def test_spliced_bytes_are_measured(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    out, into = os.pipe()
    with open_between(client, server) as both:
        for _ in range(200):
            both.client.sendall(b"x" * 100)
            wait_for_bytes(both.server, 100)
            assert os.splice(both.server.fileno(), into, 100) == 100
            os.read(out, 100)
    os.close(out)
    os.close(into)
    assert rx(taken(engine, SERVER)) == (200, 0)


async def test_threads_that_share_a_connection_count_each_segment_once(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:

        def read() -> None:
            while both.server.recv(64):
                pass

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for _ in range(500):
            both.client.sendall(b"x" * 64)
        wait_until_acknowledged(both.client)  # else its FIN may be merged with data, too
        both.client.shutdown(socket.SHUT_WR)
        for reader in readers:
            reader.join()
    measured = engine.read()
    # What comes while a thread reads may be merged before TCP sees it. What was sent again after a
    # halt of the machine is received once. What comes too early is counted apart, as with bulk.
    received = sum(rx(measured[SERVER])) + tcp_figures(server.namespace)["TCPBacklogCoalesce"]
    sent = count(measured[CLIENT], "tx.total") - sent_again(client.namespace)
    early = measured[SERVER].counters.get("headOfLineSegments", 0)
    assert 0 <= sent - received - early <= early + MOST_HIDDEN * (sent // 50)
    assert sent > 100


@pytest.mark.every_kernel
async def test_segments_behind_a_lost_one_are_counted_apart(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    load_rules(server, DROP_SECOND_REQUEST)
    with open_between(client, server) as both:
        for _ in range(5):
            both.client.sendall(b"x" * 100)
        wait_for_bytes(both.server, 500)
        read_all(both.server, 500)
    measured = engine.read()
    behind = measured[SERVER].counters["headOfLineSegments"]
    assert behind >= 1
    assert rx(measured[SERVER]) == (5 - behind, 0)
    assert measured[CLIENT].counters["retransmits"] >= 1


@pytest.mark.every_kernel
async def test_data_on_the_handshakes_last_segment_is_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        with inside(client.namespace):
            asking = socket.socket()
        with asking:
            asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            asking.connect(listener.getsockname())
            asking.sendall(b"first")
            answering, _ = listener.accept()
            with answering:
                wait_for_bytes(answering, 5)
                asking.sendall(b"second")
                wait_for_bytes(answering, 11)
                read_all(answering, 11)
    assert rx(taken(engine, SERVER)) == (2, 0)


@pytest.mark.every_kernel
async def test_a_reply_that_comes_after_our_fin_is_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(b"q")
        both.client.shutdown(socket.SHUT_WR)
        read_all(both.server, 1)
        for _ in range(20):
            both.server.sendall(b"x" * 100)
            wait_for_bytes(both.client, 100)
            read_all(both.client, 100)
    measured = engine.read()
    assert rx(measured[SERVER]) == (1, 0)
    assert rx(measured[CLIENT]) == (0, 20)


@pytest.mark.every_kernel
async def test_bytes_that_came_before_we_watched_are_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    connections = 8  # sequence numbers begin anywhere
    client, server = pair
    engine = start_engine()
    engine.assign({SERVER: everything_in(server)})
    opened: list[Connection] = []
    with listen(server.namespace, server.address) as listener:
        for _ in range(connections):
            asking = connect(client.namespace, server.address)
            opened.append(Connection(asking, listener.accept()[0]))
    for both in opened:
        both.client.sendall(b"x" * 100)
        wait_for_bytes(both.server, 100)
    await engine.use(frozenset(DEFAULT_MODULES))
    for index, both in enumerate(opened):
        if index % 2:  # a further segment comes before the read
            both.client.sendall(b"y" * 100)
            wait_for_bytes(both.server, 200)
        both.server.recv(1000)
        both.close()
    assert rx(taken(engine, SERVER)) == (connections // 2, connections)


@pytest.mark.every_kernel
async def test_a_connection_between_families_is_measured(start_engine: Start, pair: Pair) -> None:
    """An IPv6 socket that talks IPv4."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with connection(
        client.namespace, server.namespace, "::", connect_to=f"::ffff:{server.address}"
    ) as both:
        for _ in range(50):
            both.client.sendall(b"x")
            read_all(both.server, 1)
    assert rx(taken(engine, SERVER)) == (50, 0)


async def test_unix_sockets_of_a_target_are_left_alone(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with inside(server.namespace):
            one, other = socket.socketpair(socket.AF_UNIX, kind)
        with one, other:
            for _ in range(50):
                one.sendall(b"x")
                other.recv(1)
    assert engine.read() == {}
