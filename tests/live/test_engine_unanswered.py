"""Requests whose connection ends before the first byte of an answer."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, watch
from tests.live.netfilter import load_rules
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    Connection,
    exchange,
    open_between,
    read_all,
    wait_until_acknowledged,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]

MS = 1_000_000
REQUEST, REPLY = b"q" * 200, b"r" * 128
TIMES = 5
ABANDONED, UNANSWERED = "requestsAbandoned", "requestsUnanswered"
DROP_RESETS = """
table inet late {
  chain input {
    type filter hook input priority 0;
    tcp flags & rst == rst drop
  }
}
"""

pytestmark = [pytest.mark.shared_programs, pytest.mark.every_kernel]


def begin(both: Connection, request: bytes = REQUEST) -> int:
    """A request that the server has read, and does not answer; returns when it began."""
    began_ns = time.monotonic_ns()
    both.client.sendall(request)
    read_all(both.server, len(request))
    wait_until_acknowledged(both.client)
    return began_ns


def out_of_patience(began_ns: int, slowest_ns: int) -> None:
    """Wait until a request is late beside answers as slow."""
    patience_ns = 10 * (slowest_ns + 40 * MS)
    while time.monotonic_ns() - began_ns < patience_ns:
        time.sleep(0.01)


def wait_for_end(end: socket.socket) -> None:
    """The peer's FIN has come, and waits to be read."""
    assert select.select([end], [], [], PATIENCE_SECONDS)[0]
    assert end.recv(1, socket.MSG_PEEK) == b""


def wait_for_reset(end: socket.socket) -> None:
    poll = select.poll()
    poll.register(end, 0)
    assert poll.poll(PATIENCE_SECONDS * 1000), "no reset came"
    assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE


def answer(both: Connection) -> None:
    both.server.sendall(REPLY)
    read_all(both.client, len(REPLY))


def ask_slowly(both: Connection) -> None:
    """The answer takes a second: then a request is late after a minute at the earliest."""
    begin(both)
    time.sleep(1.1)
    answer(both)


def counts(measured: Measurement) -> tuple[int, int]:
    """The requests that were abandoned, and those that were unanswered."""
    return measured.counters.get(ABANDONED, 0), measured.counters.get(UNANSWERED, 0)


async def test_a_request_that_its_client_gives_up_is_counted_with_its_wait(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    least_ns: list[int] = []
    most_ns: list[int] = []
    for _ in range(TIMES):
        with open_between(client, server) as both:
            slowest_ns = exchange(both, 3)
            began_ns = begin(both)
            read_ns = time.monotonic_ns()
            out_of_patience(began_ns, slowest_ns)
            least_ns.append(time.monotonic_ns() - read_ns)
            both.client.close()
            most_ns.append(time.monotonic_ns() - began_ns)
    measured = engine.read()
    assert counts(measured[CLIENT]) == (TIMES, 0)
    assert sum(least_ns) <= measured[CLIENT].counters[ABANDONED + "Ns"] <= sum(most_ns)
    assert counts(measured[SERVER]) == (0, 0)


async def test_a_first_request_that_its_client_gives_up_is_only_unanswered(
    start_engine: Start, pair: Pair
) -> None:
    """It may be a log or a metric, which wants no answer."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    for _ in range(TIMES):
        with open_between(client, server) as both:
            begin(both)
            both.client.close()
    assert counts(engine.read()[CLIENT]) == (0, TIMES)


async def test_a_request_to_which_the_server_closes_is_unanswered(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for answers in (0, 3):
        with open_between(client, server) as both:
            exchange(both, answers)
            begin(both)
            both.server.close()
            assert both.client.recv(1) == b""
    assert counts(engine.read()[CLIENT]) == (0, 2)


@pytest.mark.parametrize("is_reset_first", [True, False], ids=["reset", "closed_before_it"])
async def test_a_request_on_a_connection_that_the_server_has_closed_is_unanswered(
    start_engine: Start, pair: Pair, is_reset_first: bool
) -> None:
    """A server's keep-alive time-out ends as its client asks again: nginx's race."""
    client, server = pair
    if not is_reset_first:
        load_rules(client, DROP_RESETS)
    engine = await watch(start_engine, client, server)
    for answers in (0, 3):
        with open_between(client, server) as both:
            exchange(both, answers)
            both.server.close()
            wait_for_end(both.client)
            both.client.sendall(REQUEST)
            if is_reset_first:
                wait_for_reset(both.client)
            both.client.close()
    measured = engine.read()
    assert counts(measured[CLIENT]) == (0, 2)
    assert measured[CLIENT].counters.get("resetsReceived", 0) == (2 if is_reset_first else 0)


async def test_a_client_that_only_says_goodbye_has_abandoned_nothing(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for goodbye in (b"QUIT\r\n", b"g" * 63):
        with open_between(client, server) as both:
            slowest_ns = exchange(both, 3)
            out_of_patience(begin(both, goodbye), slowest_ns)
    assert counts(engine.read()[CLIENT]) == (0, 0)


async def test_a_request_that_is_cancelled_soon_is_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    """Its answer was not late: another server may have been faster."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        ask_slowly(both)
        exchange(both, 3)
        begin(both)
        both.client.close()
    assert counts(engine.read()[CLIENT]) == (0, 0)


async def test_a_request_whose_client_half_closes_has_an_answer(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for _ in range(TIMES):
        with open_between(client, server) as both:
            both.client.sendall(REQUEST)
            both.client.shutdown(socket.SHUT_WR)
            read_all(both.server, len(REQUEST))
            answer(both)
    assert counts(engine.read()[CLIENT]) == (0, 0)
