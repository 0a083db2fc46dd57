"""Connections on which the server speaks first and late, or which it ends late."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, watch
from tests.live.pods import Pod
from tests.live.sockets import Connection, exchange, open_between, read_all

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]

GREETINGS, ENDS, NO_DATA = "lateGreetings", "lateEnds", "connectionsWithoutData"
LATE_S, END_OF_LATE_S = 0.1, 1.0
TRIES = 20

pytestmark = [pytest.mark.shared_programs, pytest.mark.every_kernel]


def greet(both: Connection) -> None:
    both.server.sendall(b"220 ready\r\n")
    read_all(both.client, len(b"220 ready\r\n"))


def end_by_server(both: Connection) -> None:
    both.server.close()
    assert both.client.recv(1) == b""


Counts = tuple[int, int]


def counts(engine: KernelEngine) -> tuple[Counts, Counts]:
    """The late greetings and late ends since the last reading, of the client and of the server."""
    measured = engine.read()
    counters = [measured.get(end, Measurement()).counters for end in (CLIENT, SERVER)]
    client, server = ((each.get(GREETINGS, 0), each.get(ENDS, 0)) for each in counters)
    return client, server


def in_time(engine: KernelEngine, act: Callable[[], float], least_s: float, most_s: float) -> None:
    """Act until that took as long by its own account: the machine may stand still for a moment.

    The counts since the last reading are those of the last act.
    """
    for _ in range(TRIES):
        engine.read()
        if least_s <= act() < most_s:
            return
    pytest.fail(f"{TRIES} times it took less than {least_s} s, or {most_s} s and more")


async def test_a_late_greeting_is_counted_at_both_ends_with_its_time(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    began_ns = time.monotonic_ns()
    with open_between(client, server) as both:
        opened_ns = time.monotonic_ns()
        await asyncio.sleep(0.15)
        least_ns = time.monotonic_ns() - opened_ns
        greet(both)
        most_ns = time.monotonic_ns() - began_ns
        await asyncio.sleep(0.15)
        greet(both)
        exchange(both, 1)
    measured = engine.read()
    for end in (CLIENT, SERVER):
        assert measured[end].counters[GREETINGS] == 1
        assert measured[end].counters[GREETINGS + "Ns"] in range(least_ns, most_ns + 1)


async def test_bytes_after_a_request_are_no_greeting_nor_is_one_in_time(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)

    def speak_soon() -> float:
        began = time.monotonic()
        with open_between(client, server) as both:
            greet(both)
            passed_s = time.monotonic() - began
            both.client.close()
        return passed_s

    in_time(engine, speak_soon, 0, LATE_S)
    assert counts(engine) == ((0, 0), (0, 0))
    with open_between(client, server) as both:
        exchange(both, 1)
        await asyncio.sleep(0.15)
        greet(both)
        both.client.close()
        assert both.server.recv(1) == b""
    assert counts(engine) == ((0, 0), (0, 0))


async def test_a_connection_that_a_client_gives_up_without_a_byte_is_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    for gives_up in (True, False):
        with open_between(client, server) as both:
            await asyncio.sleep(1.1)
            first, last = (both.client, both.server)[:: 1 if gives_up else -1]
            first.close()
            assert last.recv(1) == b""
    measured = engine.read()
    assert measured[CLIENT].counters[NO_DATA] == 1
    assert measured[CLIENT].counters[NO_DATA + "Ns"] >= 1_000_000_000
    assert NO_DATA not in measured[SERVER].counters
    assert GREETINGS not in measured[CLIENT].counters


async def test_a_keep_alive_probe_is_no_last_byte(start_engine: Start, pair: Pair) -> None:
    """An idle connection that its server ends soon after a probe was idle all the same."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        both.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        exchange(both, 1)
        await asyncio.sleep(1.5)
        end_by_server(both)
    assert counts(engine) == ((0, 0), (0, 0))


async def test_a_server_that_ends_late_is_counted_at_both_ends(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)

    def end_late() -> float:
        with open_between(client, server) as both:
            began = time.monotonic()
            exchange(both, 1)
            time.sleep(0.2)
            end_by_server(both)
            return time.monotonic() - began

    in_time(engine, end_late, 0.2, END_OF_LATE_S)
    measured = engine.read()
    for end in (CLIENT, SERVER):
        assert measured[end].counters[ENDS] == 1
        assert 200_000_000 <= measured[end].counters[ENDS + "Ns"] < 1_000_000_000


async def test_an_end_in_time_or_of_an_idle_or_used_connection_or_by_the_client_is_not_late(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)

    def end_soon() -> float:
        with open_between(client, server) as both:
            began = time.monotonic()
            exchange(both, 1)
            end_by_server(both)
            return time.monotonic() - began

    in_time(engine, end_soon, 0, LATE_S)
    assert counts(engine) == ((0, 0), (0, 0))
    with open_between(client, server) as both:
        exchange(both, 1)
        await asyncio.sleep(END_OF_LATE_S + 0.1)
        end_by_server(both)
    with open_between(client, server) as both:
        exchange(both, 1)
        await asyncio.sleep(0.2)
        both.client.close()
        assert both.server.recv(1) == b""
    with open_between(client, server) as both:
        exchange(both, 2)
        await asyncio.sleep(0.2)
        end_by_server(both)
    assert counts(engine) == ((0, 0), (0, 0))
