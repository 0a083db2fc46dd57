"""Requests and replies: whose time is whose, and what is not taken for a request."""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, account_for, assert_all_left, watch
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    Connection,
    connect,
    connection,
    everything_in,
    listen,
    open_between,
    read_all,
    sent_again,
    wait_for_bytes,
    wait_until_acknowledged,
    waiting_bytes,
)
from tests.live.truth import Durations, Moment

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]

MS = 1_000_000
REQUEST, REPLY = b"q" * 64, b"r" * 128
PERCENTILES = (50, 99)
MOST_ROUNDS = 10

pytestmark = pytest.mark.shared_programs


def delay(milliseconds: float) -> None:
    """Hold up whoever is measured."""
    time.sleep(milliseconds / 1e3)


def ask(both: Connection, times: int = 1) -> int:
    """Requests and replies, one at a time; returns how long the slowest took, in nanoseconds."""
    slowest_ns = 0
    for _ in range(times):
        began_ns = time.monotonic_ns()
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))
        slowest_ns = max(slowest_ns, time.monotonic_ns() - began_ns)
    return slowest_ns


def ask_with_a_pause(both: Connection) -> None:
    """A request in two parts, of which the server has the first long before the second."""
    for _ in range(2):
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        wait_until_acknowledged(both.client)
        delay(200)
    both.server.sendall(REPLY)
    read_all(both.client, len(REPLY))


def app(measured: Measurement) -> tuple[int, int]:
    """(samples, turns known to be missing) of app.response."""
    return account_for(measured, "app.response")


def peer(measured: Measurement) -> tuple[int, int]:
    """(samples, turns known to be missing) of peer.response."""
    return account_for(measured, "peer.response")


@contextmanager
def answering(both: Connection, delays_ms: list[int]) -> Iterator[list[tuple[Moment, Moment]]]:
    """A server that answers after these delays; yields when it read and when it answered."""
    answered: list[tuple[Moment, Moment]] = []

    def serve() -> None:
        for delay_ms in delays_ms:
            both.server.recv(1, socket.MSG_PEEK)
            read = Moment.of(lambda: read_all(both.server, len(REQUEST)))
            delay(delay_ms)
            answered.append((read, Moment.of(lambda: both.server.sendall(REPLY))))

    thread = threading.Thread(target=serve)
    thread.start()
    yield answered
    thread.join()


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_slow_server_is_found_in_the_responses_and_nowhere_else(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=typed)
    delays_ms = [10] * 60 + [20] * 30 + [80] * 10
    asked = []
    with open_between(client, server) as both, answering(both, delays_ms) as answered:
        for _ in delays_ms:
            sent = Moment.of(lambda: both.client.sendall(REQUEST))
            both.client.recv(1, socket.MSG_PEEK)
            asked.append((sent, time.monotonic_ns()))
            read_all(both.client, len(REPLY))
    measured = engine.read()
    took, waited = Durations(), Durations()
    for (read, answer), (sent, seen_ns) in zip(answered, asked, strict=True):
        took.add(read, answer)
        waited.add(sent, Moment(answer.not_before_ns, seen_ns))
    took.assert_are_in(measured[SERVER].stage("app.response").histogram)
    waited.assert_are_in(measured[CLIENT].stage("peer.response").histogram)
    for slot, elsewhere in ((CLIENT, "app.response"), (SERVER, "peer.response")):
        assert elsewhere not in measured[slot].stages
        for stage in ("rx.total", "tx.total"):
            assert measured[slot].stage(stage).histogram.min_ns < 5 * MS, stage


async def test_requests_and_replies_in_pieces_count_once(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    amount = 1 << 15
    with open_between(client, server) as both:
        for _ in range(10):
            both.client.sendall(bytes(amount))
            wait_for_bytes(both.server, amount)  # else a pause in it makes its turn unmatched
            read_all(both.server, amount, 1000)
            delay(20)
            for _ in range(5):
                both.server.sendall(REPLY)
            read_all(both.client, 5 * len(REPLY), 50)
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (10, 0)
    assert measured[SERVER].stage("app.response").histogram.min_ns > 19 * MS


async def test_a_request_that_is_read_while_it_comes_counts_once(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    amount = 1 << 20
    with open_between(client, server) as both:
        for _ in range(10):
            sending = threading.Thread(target=both.client.sendall, args=(bytes(amount),))
            sending.start()
            read_all(both.server, amount, 10_000)
            sending.join()
            both.server.sendall(REPLY)
            read_all(both.client, len(REPLY))
    measured = engine.read()
    # A sender that is held up makes a pause, and its turn may be two requests.
    assert sum(app(measured[SERVER])) == sum(peer(measured[CLIENT])) == 10


async def test_a_pause_within_a_request_makes_its_turn_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    """It may be two requests as well, the second one sent before the reply to the first."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        ask_with_a_pause(both)
        took_ns = ask(both)
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (1, 1)
    for slot, stage in ((SERVER, "app.response"), (CLIENT, "peer.response")):
        assert measured[slot].stage(stage).histogram.max_ns <= took_ns


@pytest.mark.parametrize("pause_ms", [20, 100])
async def test_a_short_pause_in_a_request_is_not_the_peers_time(
    start_engine: Start, pair: Pair, pause_ms: float
) -> None:
    """Also before the peer's delayed ACK has come."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        ask(both, 40)  # the server's TCP delays ACKs from now on
        engine.read()
        for _ in range(3):
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            delay(pause_ms)
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            both.server.sendall(REPLY)
            read_all(both.client, len(REPLY))
    assert peer(engine.read()[CLIENT]) == (0, 3)


async def test_a_slow_answer_to_a_request_with_a_short_pause_is_the_peers(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        for _ in range(6):
            both.client.sendall(REQUEST)
            delay(5)
            both.client.sendall(REQUEST)
            read_all(both.server, 2 * len(REQUEST))
            delay(500)
            both.server.sendall(REPLY)
            read_all(both.client, len(REPLY))
    measured = engine.read()[CLIENT]
    assert peer(measured) == (6, 0)
    assert measured.stage("peer.response").histogram.min_ns > 500 * MS


async def test_rare_pauses_in_the_requests_of_a_connection_do_not_add_up(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    paused, clear = 3, 100  # a row of 32 clear turns outweighs a pause
    with open_between(client, server) as both:
        for _ in range(2):
            for _ in range(paused):
                ask_with_a_pause(both)
            ask(both, clear)
    measured = engine.read()
    expected = (2 * clear, 2 * paused)
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == expected


async def test_two_streams_that_cross_are_no_requests(start_engine: Start, pair: Pair) -> None:
    """Each side speaks now and then, and waits for nothing."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        for _ in range(6):
            ask_with_a_pause(both)
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (0, 6)


@contextmanager
def at_own_pace(gap_ms: float) -> Iterator[Iterator[int]]:
    """Numbers, of which one comes in each gap; no delay adds up."""
    began = time.monotonic()

    def beats() -> Iterator[int]:
        for beat in itertools.count():
            delay(max(0.0, (began + beat * gap_ms / 1e3 - time.monotonic()) * 1e3))
            yield beat

    yield beats()


async def test_two_streams_that_cross_in_turns_are_no_requests(
    start_engine: Start, pair: Pair
) -> None:
    """The server is the faster one: each piece of the client has one of the server after it."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    turns = 30

    def cross(beats: Iterator[int]) -> Mapping[int, Measurement]:
        for beat in itertools.islice(beats, turns * 10):
            if beat % 10 == 0:
                both.client.sendall(REQUEST)
                read_all(both.server, len(REQUEST))
            if beat % 7 == 3:
                both.server.sendall(REPLY)
                read_all(both.client, len(REPLY))
        return engine.read()

    with open_between(client, server) as both, at_own_pace(gap_ms=10) as beats:
        first, then = ((app(each[SERVER]), peer(each[CLIENT])) for each in map(cross, [beats] * 2))
        for samples, unmatched in (*first, *then):
            assert samples + unmatched == turns
        # The pace is known by now.
        assert all(samples < turns / 2 for samples, _ in then)
        # Then the client asks, and the server answers at once.
        ask(both, 2 * turns)
        ask(both, turns)
    measured = engine.read()
    assert all(samples > turns for samples, _ in (app(measured[SERVER]), peer(measured[CLIENT])))


@pytest.mark.parametrize("answer_ms", ["ever later", "slow at once"])
async def test_answers_to_a_client_of_its_own_pace_are_measured_though_they_slow_down(
    start_engine: Start, pair: Pair, answer_ms: str
) -> None:
    """They come in two parts with a pause, so the server is heard unasked."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    turns = 40
    with open_between(client, server) as both, at_own_pace(gap_ms=60) as beats:
        for turn in itertools.islice(beats, turns):
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            at_once = 2 if turn < turns / 2 else 40
            delay(2 + turn if answer_ms == "ever later" else at_once)
            for _ in range(2):
                both.server.sendall(REPLY)
                read_all(both.client, len(REPLY))
                delay(5)
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (turns, 0)


def late_clock(seed: int, beats: int) -> Iterator[float]:
    """By how many milliseconds each beat is late: mostly by as many as the one before."""
    chance, late = random.Random(seed), 0.0
    for _ in range(beats):
        if chance.random() < 0.25:
            late = min(2.0, max(-2.0, late + chance.uniform(-1.5, 1.5)))
        yield late


def take_turns(both: Connection, turns: int, *, waits: bool) -> None:
    """Pieces of the client and of the server, each by a late clock, in turns.

    `waits`: the server's lateness is that of its answer to the piece before, and else of its clock.
    """
    began = time.monotonic()

    def until(milliseconds: float) -> None:
        delay(max(0.0, (began - time.monotonic()) * 1e3 + milliseconds))

    clocks = zip(late_clock(9, turns), late_clock(3, turns), strict=True)
    for beat_ms, (client_ms, server_ms) in zip(itertools.count(0, 10), clocks, strict=False):
        until(beat_ms + client_ms)
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        asked_ms = (time.monotonic() - began) * 1e3 if waits else beat_ms
        until(asked_ms + 5 + server_ms)
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))


async def test_two_streams_of_one_pace_are_no_requests(start_engine: Start, pair: Pair) -> None:
    """They never overtake each other: each piece has one of the other side after it."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    turns = 120
    with open_between(client, server) as both:
        for _ in range(MOST_ROUNDS):  # a busy machine makes both sides late at once
            take_turns(both, turns, waits=False)
            measured = engine.read()
            counted = (app(measured[SERVER]), peer(measured[CLIENT]))
            assert {samples + unmatched for samples, unmatched in counted} == {turns}
            if all(samples < turns / 2 for samples, _ in counted):
                return
    pytest.fail("they are taken for requests")


async def test_answers_to_a_client_with_a_clock_are_measured_though_both_are_late(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    turns = 200
    with open_between(client, server) as both:
        take_turns(both, turns, waits=True)
    measured = engine.read()
    for samples, unmatched in (app(measured[SERVER]), peer(measured[CLIENT])):
        assert samples + unmatched == turns
        assert samples > turns * 0.9


async def test_pipelined_requests_are_never_paired_wrongly(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        took_ns, waited_ns = [ask(both)], []
        asked_ns = time.monotonic_ns()
        both.client.sendall(REQUEST)
        both.client.sendall(REQUEST)
        wait_for_bytes(both.server, 2 * len(REQUEST))
        for number in (1, 2):
            began_ns = time.monotonic_ns()
            read_all(both.server, len(REQUEST), len(REQUEST))
            delay(200)
            both.server.sendall(REPLY)
            took_ns.append(time.monotonic_ns() - began_ns)
            wait_for_bytes(both.client, number * len(REPLY))
            waited_ns.append(time.monotonic_ns() - asked_ns)
        read_all(both.client, 2 * len(REPLY))
        took_ns.append(ask(both))
    measured = engine.read()
    # the first of the two has an unread one behind it; the second is alone again
    assert app(measured[SERVER]) == (3, 1)
    assert 199 * MS < measured[SERVER].stage("app.response").histogram.max_ns <= max(took_ns)
    assert sum(peer(measured[CLIENT])) == 3
    longest_ns = max(took_ns[0], waited_ns[0], took_ns[-1])  # not until the second reply
    assert measured[CLIENT].stage("peer.response").histogram.max_ns <= longest_ns


async def test_a_connection_that_carries_several_requests_at_once_has_no_samples(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(REQUEST)
        for _ in range(30):  # there is always one on its way
            both.client.sendall(REQUEST)
            wait_for_bytes(both.server, 2 * len(REQUEST))
            read_all(both.server, len(REQUEST), len(REQUEST))
            both.server.sendall(REPLY)
            read_all(both.client, len(REPLY))
        read_all(both.server, len(REQUEST))
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))
        engine.read()
        ask(both, 5)
    measured = engine.read()
    assert app(measured[SERVER]) == (0, 5)


async def test_a_greeting_is_nobodys_response(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        delay(20)
        both.server.sendall(b"220 ready\r\n")
        read_all(both.client, 11)
        delay(20)
        first_ns = ask(both)
        both.server.sendall(REPLY)  # unasked
        read_all(both.client, len(REPLY))
        longest_ns = max(first_ns, ask(both))
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (2, 0)
    for slot, stage in ((SERVER, "app.response"), (CLIENT, "peer.response")):
        assert measured[slot].stage(stage).histogram.max_ns <= longest_ns


async def test_bytes_sent_before_the_request_was_known_are_no_reply(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    # 32 kbit/s: what follows a packet of 200 bytes waits for some 16 ms
    server.namespace.execute(
        *("tc", "qdisc", "add", "dev", "eth0", "root", "tbf"),
        *("rate", "32kbit", "burst", "200", "latency", "10s"),
    )
    engine = await watch(start_engine, client, server)
    held = 0
    with open_between(client, server) as both:
        for _ in range(10):
            both.server.sendall(b"n" * 130)
            read_all(both.client, 130)
            both.server.sendall(b"news")
            held += waiting_bytes(both.client) == 0  # but after a halt of this process
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            delay(40)
            both.server.sendall(REPLY)
            read_all(both.client, 4 + len(REPLY))
            delay(50)
    measured = engine.read()
    assert held >= 5
    assert peer(measured[CLIENT]) == (10, 0)
    assert measured[CLIENT].stage("peer.response").histogram.min_ns > 39 * MS


async def test_a_half_closed_clients_reply_is_unmatched_and_the_servers_answer_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(REQUEST)
        both.client.shutdown(socket.SHUT_WR)
        read = Moment.of(
            lambda: read_all(both.server, len(REQUEST)),
            lambda: both.server.recv(1),  # the end
        )
        delay(20)
        took = Durations()
        took.add(read, Moment.of(lambda: both.server.sendall(REPLY)))
        read_all(both.client, len(REPLY))
    measured = engine.read()
    assert peer(measured[CLIENT]) == (0, 1)
    samples, missing = app(measured[SERVER])
    assert samples + missing == 1
    if samples:
        took.assert_are_in(measured[SERVER].stage("app.response").histogram)


async def test_a_request_that_ends_with_a_late_fin_is_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        delay(20)
        both.client.shutdown(socket.SHUT_WR)
        assert both.server.recv(1) == b""
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))
    assert app(engine.read()[SERVER]) == (0, 1)


async def test_a_request_whose_end_is_read_without_a_copy_is_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    out, into = os.pipe()
    with open_between(client, server) as both:
        for number in range(40):
            both.client.sendall(REQUEST)
            wait_for_bytes(both.server, len(REQUEST))
            both.server.recv(10)
            if number % 2:
                both.server.recv(100, socket.MSG_TRUNC)
            else:
                os.read(out, os.splice(both.server.fileno(), into, 100))
            both.server.sendall(REPLY)
            read_all(both.client, len(REPLY))
    os.close(out)
    os.close(into)
    assert app(engine.read()[SERVER]) == (40, 0)


async def test_a_peek_is_no_reading(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    took = Durations()
    with open_between(client, server) as both:
        for _ in range(5):
            both.client.sendall(REQUEST)
            wait_for_bytes(both.server, len(REQUEST))
            both.server.recv(10, socket.MSG_PEEK)
            delay(20)
            read = Moment.of(lambda: read_all(both.server, len(REQUEST)))
            took.add(read, Moment.of(lambda: both.server.sendall(REPLY)))
            read_all(both.client, len(REPLY))
    measured = engine.read()
    assert app(measured[SERVER]) == (5, 0)
    took.assert_are_in(measured[SERVER].stage("app.response").histogram)


async def test_threads_that_share_a_connection_have_turns_in_common(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:

        def serve() -> None:
            while both.server.recv(len(REQUEST)):
                delay(10)
                both.server.sendall(REPLY)

        threads = [threading.Thread(target=serve) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            both.client.sendall(REQUEST)
            read_all(both.client, len(REPLY))
        both.client.shutdown(socket.SHUT_WR)
        for thread in threads:
            thread.join()
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (50, 0)
    assert measured[SERVER].stage("app.response").histogram.min_ns > 9 * MS


@pytest.mark.every_kernel
@pytest.mark.parametrize("backlog", [1, 1024])
async def test_roles_are_known_of_connections_that_were_open_before(
    start_engine: Start, pair: Pair, backlog: int
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    with listen(server.namespace, server.address) as listener:
        listener.listen(backlog)
        asking = connect(client.namespace, server.address)
        both = Connection(asking, listener.accept()[0])
        ask(both, 3)
        await engine.use(frozenset(DEFAULT_MODULES))
        ask(both, 50)
        both.close()
    measured = engine.read()
    assert app(measured[SERVER]) == (50, 0)
    assert peer(measured[CLIENT]) == (49, 0)  # of the first it is not known when it began
    assert "peer.response" not in measured[SERVER].stages
    assert "app.response" not in measured[CLIENT].stages


async def test_a_request_read_before_we_watched_is_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: everything_in(client), SERVER: everything_in(server)})
    with open_between(client, server) as both:
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        await engine.use(frozenset(DEFAULT_MODULES))
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))
    measured = engine.read()
    assert app(measured[SERVER]) == (0, 1)
    assert peer(measured[CLIENT]) == (0, 0)


async def test_turns_that_went_by_unwatched_are_not_paired_with_later_ones(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    targets = {CLIENT: everything_in(client), SERVER: everything_in(server)}
    with open_between(client, server) as both:
        ask(both, 3)
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        engine.assign({})
        both.server.sendall(REPLY)
        read_all(both.client, len(REPLY))
        engine.read()
        engine.assign(targets)
        ask(both, 3)
    measured = engine.read()
    assert app(measured[SERVER]) == (3, 0)
    assert peer(measured[CLIENT]) == (2, 0)


async def test_responses_of_an_ipv6_socket_that_talks_ipv4_are_measured(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with connection(
        client.namespace, server.namespace, "::", connect_to=f"::ffff:{server.address}"
    ) as both:
        ask(both, 20)
    measured = engine.read()
    assert app(measured[SERVER]) == peer(measured[CLIENT]) == (20, 0)


def serve_when_handed_over(handed: socket.socket, times: int) -> None:
    """Be a process of its own that gets a connection handed over, and answers on it."""
    if os.fork():
        return
    try:
        _, (descriptor,), _, _ = socket.recv_fds(handed, 1, 1)
        with socket.socket(fileno=descriptor) as answering:
            answering.settimeout(PATIENCE_SECONDS)  # it came without blocking, as its owner's does
            answer(answering, times)
    finally:
        os._exit(0)


def serve_in_a_child(answering: socket.socket, times: int) -> None:
    """Have a child of this process answer."""
    if os.fork():
        return
    try:
        answer(answering, times)
    finally:
        os._exit(0)


def wait_for_child() -> None:
    os.wait()


def answer(answering: socket.socket, times: int) -> None:
    """Answer so many requests, each after a while."""
    for _ in range(times):
        read_all(answering, len(REQUEST))
        delay(5)
        answering.sendall(REPLY)


def ask_for_answers(asking: socket.socket, times: int) -> None:
    for _ in range(times):
        asking.sendall(REQUEST)
        read_all(asking, len(REPLY))


@pytest.mark.parametrize("handed_by", ["fork", "SCM_RIGHTS"])
async def test_a_connection_that_is_handed_on_stays_the_targets(
    start_engine: Start, pair: Pair, handed_by: str
) -> None:
    client, server = pair
    here, there = socket.socketpair()
    if handed_by == "SCM_RIGHTS":  # to a stranger: no child of a target's
        serve_when_handed_over(there, 10)
    engine = start_engine()
    own = frozenset({os.getpid()})
    engine.assign({SERVER: SlotSpec(tgids=own, netns=everything_in(server).netns)})
    await engine.use(frozenset(DEFAULT_MODULES))
    with here, there, open_between(client, server) as both:
        thread = threading.Thread(target=ask_for_answers, args=(both.client, 20))
        thread.start()
        answer(both.server, 10)
        if handed_by == "SCM_RIGHTS":
            socket.send_fds(here, [b"x"], [both.server.fileno()])
        else:
            serve_in_a_child(both.server, 10)
        thread.join()
    wait_for_child()
    again = sent_again(server.namespace)
    measured = engine.read()[SERVER]
    assert app(measured) == (20, 0)
    assert measured.stage("app.response").histogram.min_ns > 4 * MS
    assert account_for(measured, "rx.total") == (20, 0)
    assert_all_left(measured, "tx.total", 20, again)
