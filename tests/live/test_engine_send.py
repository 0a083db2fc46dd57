"""tx.socket: how long bytes wait in the socket before they are sent, and what held them back."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.build.headers import version_code
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import CLIENT, TX_PARTS, account_for, assert_all_left, count, resent
from tests.live.netfilter import load_rules
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    Connection,
    bytes_in_queue,
    connection,
    everything_in,
    inside,
    listen,
    open_between,
    read_all,
    wait_for_bytes,
    wait_until_acknowledged,
)
from tests.live.truth import BUCKET, Durations, Moment

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
SIOCOUTQNSD = 0x894B  # include/uapi/linux/sockios.h: bytes in the send queue that were never sent
MSG_ZEROCOPY = 0x4000000  # include/linux/socket.h
SO_ZEROCOPY = 60  # include/uapi/asm-generic/socket.h
SO_MAX_PACING_RATE = 47
SENDS_PAGES_AS_MESSAGES = (6 << 16) + (5 << 8)  # since 6.5: MSG_SPLICE_PAGES
MILLISECOND_NS = 1_000_000
PIECE = b"p" * 1000
LONG_MESSAGE = 500_000
HANDOFFS = 32  # bpf/include/sockets.h
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
TIMES_OF_CAUSES = {
    "sendsBehindWindow": "behindWindowNs",
    "sendsBehindCongestion": "behindCongestionNs",
    "sendsPaced": "pacedNs",
    "sendsHeldBack": "heldBackNs",
}

DROP_SECOND_REQUEST = """
table inet lossy {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 tcp flags & psh == psh numgen inc mod 1000 == 1 drop
  }
}
"""

pytestmark = [pytest.mark.unscoped, pytest.mark.shared_programs]


async def watch(start: Start, client: Pod, **options: object) -> KernelEngine:
    """An engine with the default modules on everything in the client's namespace."""
    engine = start(**options)
    engine.assign({CLIENT: everything_in(client)})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


@pytest.fixture
def both(pair: Pair) -> Iterator[Connection]:
    """A connection between the pods."""
    client, server = pair
    with connection(client.namespace, server.namespace, server.address) as made:
        yield made


def taken(engine: KernelEngine) -> Measurement:
    return engine.read().get(CLIENT, NOTHING)


def unsent_bytes(end: socket.socket) -> int:
    """How much was never sent."""
    return bytes_in_queue(end, SIOCOUTQNSD)


def wait_until_sent(end: socket.socket) -> Moment:
    """Returns as soon as everything was sent once, with the moment of the last departure."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    unsent_ns, seen_ns = 0, time.monotonic_ns()
    while unsent := unsent_bytes(end):
        assert time.monotonic() < deadline, f"{unsent} bytes are still unsent"
        os.sched_yield()
        unsent_ns, seen_ns = seen_ns, time.monotonic_ns()
    return Moment(unsent_ns, time.monotonic_ns())


def without_probes(client: Pod, server: Pod) -> None:
    """What a window or a cork holds is not tried in part until seconds have passed.

    That is after the time of a retransmission, tcp_probe0_base(), include/net/tcp.h.
    """
    route = ("route", "replace", f"{server.address}/32", "dev", "eth0")
    client.namespace.ip(*route, "rto_min", "5s")


def fill_windows(connections: list[Connection]) -> list[Moment]:
    """Send pieces until no peer takes more; returns when those that wait were handed over."""
    handed: dict[Connection, Moment] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    filling = list(connections)
    while filling:
        for both in list(filling):
            unsent = unsent_bytes(both.client)
            if not unsent:
                both.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                handed[both] = Moment.of(partial(both.client.sendall, PIECE))
            elif bytes_in_queue(both.client, termios.TIOCOUTQ) == unsent:  # what was sent arrived
                filling.remove(both)
        assert time.monotonic() < deadline, f"{len(filling)} windows are still open"
    return [handed[both] for both in connections]


def assert_adds_up(measurement: Measurement) -> None:
    whole = measurement.stage("tx.total").histogram.sum_ns
    assert sum(measurement.stage(part).histogram.sum_ns for part in TX_PARTS) == whole > 0


def assert_waited_in_the_socket_alone(measurement: Measurement) -> None:
    assert_adds_up(measurement)
    waited = measurement.stage("tx.socket").histogram
    assert waited.sum_ns > 0.95 * measurement.stage("tx.total").histogram.sum_ns
    for part in ("tx.stack", "tx.qdisc"):
        assert measurement.stage(part).histogram.min_ns < MILLISECOND_NS


def causes(measurement: Measurement) -> dict[str, int]:
    """The counters of what held segments back, as far as they are not 0."""
    counters = measurement.counters
    return {name: counters[name] for name in TIMES_OF_CAUSES if name in counters}


def assert_times_are_of_the_causes(measurement: Measurement, cause: str) -> None:
    """This one took what tx.socket was, but for waits below a millisecond; the others nothing."""
    times = {
        name: measurement.counters.get(time_of, 0) for name, time_of in TIMES_OF_CAUSES.items()
    }
    waited = measurement.stage("tx.socket").histogram
    assert {name for name, took_ns in times.items() if took_ns} == causes(measurement).keys()
    short = waited.count - sum(causes(measurement).values())
    assert waited.sum_ns - short * MILLISECOND_NS <= sum(times.values()) <= waited.sum_ns
    assert times[cause] >= causes(measurement)[cause] * MILLISECOND_NS


def small_window(client: Pod, server: Pod, stack: ExitStack, connections: int) -> list[Connection]:
    """Connections whose server takes but a few kilobytes before it reads."""
    without_probes(client, server)
    listener = stack.enter_context(listen(server.namespace, server.address))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    made = []
    for _ in range(connections):
        with inside(client.namespace):
            asking = socket.create_connection((server.address, PORT), PATIENCE_SECONDS)
        asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # no pacing
        asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        both = Connection(asking, listener.accept()[0])
        stack.callback(both.close)
        made.append(both)
    return made


@pytest.mark.every_kernel
async def test_a_closed_receive_window_is_found_in_tx_socket_and_nowhere_else(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client)
    waits = Durations()
    measured = NOTHING
    with ExitStack() as stack:
        connections = small_window(client, server, stack, 22)
        for delay_s in (0.005, 0.01, 0.02, 0.03, 0.05):
            handed = fill_windows(connections)
            filling = taken(engine)
            assert "tx.socket" in filling.stages, filling.stages
            await asyncio.sleep(delay_s)
            for both, began in zip(connections, handed, strict=True):
                open_window = partial(both.server.recv, 1 << 16)
                waits.add(began, Moment.of(open_window, partial(wait_until_sent, both.client)))
            measured += taken(engine)
    assert account_for(measured, "tx.total") == (110, 0)
    waits.assert_are_in(measured.stage("tx.socket").histogram)
    assert_waited_in_the_socket_alone(measured)
    assert causes(measured) == {"sendsBehindWindow": 110}
    assert_times_are_of_the_causes(measured, "sendsBehindWindow")
    assert judge(measured).bottleneck is Bottleneck.RECEIVE_WINDOW


@pytest.mark.every_kernel
async def test_a_cork_is_found_in_tx_socket(start_engine: Start, pair: Pair) -> None:
    engine = await watch(start_engine, pair[0])
    without_probes(*pair)
    waits = Durations()
    with open_between(*pair) as both:
        cork = partial(both.client.setsockopt, socket.IPPROTO_TCP, socket.TCP_CORK)
        for round_ in range(40):
            cork(1)
            handed = Moment.of(lambda: both.client.sendall(b"begin"))
            await asyncio.sleep(0.002 + 0.0005 * round_)
            both.client.sendall(b"end")  # the same segment: it counts from its first byte
            waits.add(handed, Moment.of(lambda: cork(0), lambda: wait_until_sent(both.client)))
            read_all(both.server, 8)
    measured = taken(engine)
    waits.assert_are_in(measured.stage("tx.socket").histogram)
    assert_waited_in_the_socket_alone(measured)
    assert causes(measured) == {"sendsHeldBack": 40}
    assert_times_are_of_the_causes(measured, "sendsHeldBack")


async def test_nagles_wait_for_an_acknowledgement_is_found_in_tx_socket(
    start_engine: Start, pair: Pair, both: Connection
) -> None:
    engine = await watch(start_engine, pair[0])
    both.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    both.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # no pacing
    at_least_ns, at_most_ns = [], []
    for _ in range(10):
        both.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        both.client.sendall(b"first")
        handed = Moment.of(lambda: both.client.sendall(b"second"))
        sent = wait_until_sent(both.client)
        at_least_ns.append(max(0, sent.not_before_ns - handed.not_after_ns))
        at_most_ns.append(sent.not_after_ns - handed.not_before_ns)
        read_all(both.server, 11)
        wait_until_acknowledged(both.client)
    measured = taken(engine)
    waited = measured.stage("tx.socket").histogram
    samples, missing = account_for(measured, "tx.socket")
    assert samples in counts_of(20)  # the timer of a delayed ACK lets every second one go
    assert missing == 0
    assert waited.percentile(60) > 2 * MILLISECOND_NS
    hidden_ns = (20 - samples) * max(at_most_ns)
    assert (sum(at_least_ns) - hidden_ns) / BUCKET <= waited.sum_ns <= sum(at_most_ns) * BUCKET
    assert list(causes(measured)) == ["sendsHeldBack"]
    assert_times_are_of_the_causes(measured, "sendsHeldBack")


async def test_pacing_is_found_in_tx_socket(
    start_engine: Start, pair: Pair, both: Connection
) -> None:
    engine = await watch(start_engine, pair[0])
    both.client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000)  # bytes a second
    handed = Moment.of(lambda: both.client.sendall(bytes(100_000)))
    sent = wait_until_sent(both.client)
    read_all(both.server, 100_000)
    measured = taken(engine)
    at_least_ns = sent.not_before_ns - handed.not_after_ns
    at_most_ns = sent.not_after_ns - handed.not_before_ns
    longest_ns = measured.stage("tx.socket").histogram.max_ns
    assert longest_ns > 30 * MILLISECOND_NS
    assert at_least_ns / BUCKET <= longest_ns <= at_most_ns * BUCKET
    assert_waited_in_the_socket_alone(measured)
    # an ACK that is delayed may hold back one of them, too
    assert {"sendsPaced"} <= causes(measured).keys() <= {"sendsPaced", "sendsBehindCongestion"}
    assert_times_are_of_the_causes(measured, "sendsPaced")
    assert measured.counters["pacedNs"] > measured.counters.get("behindCongestionNs", 0)


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_bulk_is_measured_segment_by_segment(
    start_engine: Start, pair: Pair, both: Connection, typed: bool
) -> None:
    engine = await watch(start_engine, pair[0], typed=typed)
    amount = 16 << 20
    sending = threading.Thread(target=both.client.sendall, args=(bytes(amount),))
    sending.start()
    read_all(both.server, amount)
    sending.join()
    measured = taken(engine)
    again = measured.counters.get("retransmits", 0)
    samples, missing = account_for(measured, "tx.socket")
    assert samples == count(measured, "tx.total") - again
    assert missing == 0
    assert_adds_up(measured)


@pytest.mark.every_kernel
async def test_zero_copy_sends_are_measured(
    start_engine: Start, pair: Pair, both: Connection
) -> None:
    engine = await watch(start_engine, pair[0])
    both.client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    out, into = os.pipe()
    with tempfile.TemporaryFile() as file:
        file.write(PIECE * 4)
        file.flush()
        for _ in range(30):
            both.client.send(PIECE, MSG_ZEROCOPY)
            read_all(both.server, len(PIECE))
            os.sendfile(both.client.fileno(), file.fileno(), 0, len(PIECE))
            read_all(both.server, len(PIECE))
            os.write(into, PIECE)
            os.splice(out, both.client.fileno(), len(PIECE))
            read_all(both.server, len(PIECE))
            both.client.send(PIECE, socket.MSG_MORE)
            both.client.send(PIECE)
            read_all(both.server, 2 * len(PIECE))
    os.close(out)
    os.close(into)
    measured = taken(engine)
    samples, missing = account_for(measured, "tx.socket")
    again = measured.counters.get("retransmits", 0)
    assert samples + missing == sum(account_for(measured, "tx.total")) - again >= 120
    # sendfile() and splice() did not come past tcp_sendmsg_locked() before
    assert missing == (0 if version_code() >= SENDS_PAGES_AS_MESSAGES else 60)
    assert_adds_up(measured)


@pytest.mark.every_kernel
async def test_a_segment_that_is_sent_again_has_no_tx_socket(
    start_engine: Start, pair: Pair, both: Connection
) -> None:
    client, server = pair
    engine = await watch(start_engine, client)
    load_rules(server, DROP_SECOND_REQUEST)
    for _ in range(5):
        both.client.sendall(b"x" * 100)
    wait_for_bytes(both.server, 500)
    measured = taken(engine)
    retransmits = measured.counters["retransmits"]
    assert retransmits >= 1
    assert account_for(measured, "tx.socket") == (count(measured, "tx.total") - retransmits, 0)
    assert measured.stage("tx.socket").histogram.max_ns < 190 * MILLISECOND_NS  # the least time-out
    assert_adds_up(measured)


async def test_bytes_handed_over_before_we_watched_are_unmatched(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    with ExitStack() as stack:
        connections = small_window(client, server, stack, 10)
        fill_windows(connections)
        engine = await watch(start_engine, client)
        for both in connections:
            both.server.recv(1 << 16)
            wait_until_sent(both.client)
    measured = taken(engine)
    # without its first part a packet has no total, and no other part
    assert account_for(measured, "tx.socket") == account_for(measured, "tx.total") == (0, 10)
    assert not {"tx.stack", "tx.qdisc"} & measured.stages.keys()


async def test_more_messages_than_we_remember_keep_their_waits_within_a_bucket(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client)
    waits = Durations()
    with ExitStack() as stack:
        (both,) = small_window(client, server, stack, 1)
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        handed = fill_windows([both])
        send_a_segment(both.client)  # it ends the one that waits
        taken(engine)
        for _ in range(10):
            await asyncio.sleep(0.005)
            handed += [send_a_segment(both.client) for _ in range(50)]
        await asyncio.sleep(0.06)
        # the first of them leaves after this, and the last one before it
        leave = Moment.of(lambda: both.server.recv(1 << 16), lambda: empty(both))
        for began in handed:
            waits.add(began, leave)
    measured = taken(engine)
    waited = measured.stage("tx.socket")
    assert_all_left(measured, "tx.total", len(handed), resent(measured))
    assert (waited.lost, waited.unmatched) == (0, 0)
    waits.assert_are_in(waited.histogram)
    assert_waited_in_the_socket_alone(measured)


async def test_the_end_of_a_long_message_waits_as_long_as_its_bytes_do(
    start_engine: Start, pair: Pair
) -> None:
    """Of more segments than are remembered, as an upload through a small window."""
    client, server = pair
    engine = await watch(start_engine, client)
    shortest_ns, longest_ns = [], []
    with ExitStack() as stack:
        (both,) = small_window(client, server, stack, 1)
        both.client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 * LONG_MESSAGE)
        handed = Moment.of(lambda: both.client.sendall(bytes(LONG_MESSAGE)))
        unsent, seen_ns = LONG_MESSAGE, handed.not_before_ns
        deadline = time.monotonic() + PATIENCE_SECONDS
        while unsent:
            assert time.monotonic() < deadline
            with suppress(BlockingIOError):
                both.server.recv(2048, socket.MSG_DONTWAIT)
            await asyncio.sleep(0.001)
            left = unsent_bytes(both.client)
            now_ns = time.monotonic_ns()
            each = range((unsent - left) // 100)  # alike for all, whatever the segments are
            shortest_ns += [max(0, seen_ns - handed.not_after_ns) for _ in each]
            longest_ns += [now_ns - handed.not_before_ns for _ in each]
            unsent, seen_ns = left, now_ns
    measured = taken(engine)
    waited = measured.stage("tx.socket")
    assert (waited.lost, waited.unmatched) == (0, 0)
    assert waited.histogram.count > 2 * HANDOFFS
    least, most = Histogram.of(shortest_ns), Histogram.of(longest_ns)
    for percent in (50, 90, 99):
        ours = waited.histogram.percentile(percent)
        assert least.percentile(percent) / BUCKET < ours < most.percentile(percent) * BUCKET
    assert least.mean_ns / BUCKET < waited.histogram.mean_ns < most.mean_ns * BUCKET
    assert_adds_up(measured)


@pytest.mark.every_kernel
@pytest.mark.parametrize("messages", [1, 2, 3, 4, 5, 9])
async def test_a_few_messages_that_wait_have_their_own_times(
    start_engine: Start, pair: Pair, messages: int
) -> None:
    """As many as a queue holds, and some more: FEW_HANDOFFS, bpf/include/sockets.h."""
    client, server = pair
    engine = await watch(start_engine, client)
    waits = Durations()
    with ExitStack() as stack:
        (both,) = small_window(client, server, stack, 1)
        handed = fill_windows([both])
        send_a_segment(both.client)  # it ends the one that waits
        for _ in range(messages):
            await asyncio.sleep(0.01)
            handed.append(send_a_segment(both.client))
        taken(engine)
        leave = Moment.of(lambda: both.server.recv(1 << 16), lambda: empty(both))
        for began in handed:
            waits.add(began, leave)
    measured = taken(engine)
    waited = measured.stage("tx.socket")
    assert_all_left(measured, "tx.total", len(handed), resent(measured))
    assert (waited.lost, waited.unmatched) == (0, 0)
    waits.assert_are_in(waited.histogram)


def send_a_segment(end: socket.socket) -> Moment:
    """One that no other one is merged with."""
    return Moment.of(lambda: end.send(b"m" * 100, socket.MSG_EOR))


def empty(both: Connection) -> None:
    """Read until all was sent."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while unsent_bytes(both.client):
        assert time.monotonic() < deadline
        with suppress(BlockingIOError):
            both.server.recv(1 << 16, socket.MSG_DONTWAIT)


async def test_a_fast_open_does_not_lead_astray(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    for pod in pair:
        pod.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_fastopen=519")  # without cookies
    engine = await watch(start_engine, client)
    with listen(server.namespace, server.address) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        for _ in range(20):
            with inside(client.namespace):
                asking = socket.socket()
            with asking:
                asking.settimeout(PATIENCE_SECONDS)
                with suppress(BlockingIOError):
                    asking.sendto(b"in the SYN", socket.MSG_FASTOPEN, listener.getsockname())
                answering, _ = listener.accept()
                with answering:
                    read_all(answering, 10)
                    asking.sendall(b"later")
                    read_all(answering, 5)
    measured = taken(engine)
    samples, missing = account_for(measured, "tx.socket")
    assert missing == 0
    assert samples == count(measured, "tx.total") >= 20


@pytest.mark.every_kernel
async def test_a_connection_that_is_reused_is_not_taken_for_the_one_before(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client)
    with listen(server.namespace, server.address) as listener:
        with inside(client.namespace):
            asking = socket.socket()
        with asking:
            for _ in range(20):
                asking.connect(listener.getsockname())
                answering, _ = listener.accept()
                with answering:
                    asking.sendall(b"x" * 100)
                    read_all(answering, 100)
                    disconnect(asking)
    measured = taken(engine)
    assert account_for(measured, "tx.socket") == (20, 0)
    assert_all_left(measured, "tx.total", 20, resent(measured))
    assert measured.stage("tx.socket").histogram.max_ns < 100 * MILLISECOND_NS


def disconnect(end: socket.socket) -> None:
    """connect() to AF_UNSPEC: the socket is as new; Python has no word for it."""
    unspecified = bytes(16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(end.fileno(), unspecified, len(unspecified)):
        raise OSError(ctypes.get_errno(), errno.errorcode[ctypes.get_errno()])
