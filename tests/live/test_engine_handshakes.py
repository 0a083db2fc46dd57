"""The kernel's time of a handshake: a round trip only where nothing else is in it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import SERVER, account_for, watch
from tests.live.pods import Pod
from tests.live.sockets import connect, listen, read_all, tcp_figures

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
CONNECTIONS = 12
PAUSE_SECONDS = 0.3
DELAYED_SECONDS = 0.01  # less than ACKs are delayed for
MS, US = 1_000_000, 1000

pytestmark = [
    pytest.mark.every_kernel,
    pytest.mark.parametrize(
        "typed",
        [True, pytest.param(False, marks=pytest.mark.thorough)],
        ids=["tp_btf", "raw_tp"],
    ),
]


def ask(
    client: Pod, listener: socket.socket, pause_seconds: float, times: int, between_seconds: float
) -> None:
    """Connect, pause, and ask so many times; each request acknowledges the answer before."""
    with connect(client.namespace, listener.getsockname()[0]) as asking:
        if between_seconds:  # its ACKs wait for the next request
            asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        time.sleep(pause_seconds)
        asking.sendall(b"request")
        answering, _ = listener.accept()
        with answering:
            for number in range(times):
                if number:
                    time.sleep(between_seconds)
                    asking.sendall(b"request")
                read_all(answering, 7)
                answering.sendall(b"answer")
                read_all(asking, 6)


async def handshakes(
    start: Start,
    pair: Pair,
    *,
    typed: bool,
    is_deferred: bool = False,
    pause_seconds: float = 0,
    times: int = 3,
    between_seconds: float = 0,
) -> Measurement:
    client, server = pair
    engine = await watch(start, client, server, typed=typed)
    with listen(server.namespace, server.address) as listener:
        if is_deferred:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        engine.read()
        for _ in range(CONNECTIONS):
            ask(client, listener, pause_seconds, times, between_seconds)
    return engine.read()[SERVER]


async def test_the_time_from_syn_ack_to_ack_is_a_round_trip(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    measured = await handshakes(start_engine, pair, typed=typed)
    assert account_for(measured, "tcp.handshake") == (CONNECTIONS, 0)
    assert account_for(measured, "tcp.rtt")[1] == 0
    assert measured.stage("tcp.rtt").histogram.count >= 2 * CONNECTIONS


async def test_a_clients_pause_before_its_first_data_is_no_round_trip(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    """With TCP_DEFER_ACCEPT the first request ends the handshake."""
    measured = await handshakes(
        start_engine, pair, typed=typed, is_deferred=True, pause_seconds=PAUSE_SECONDS
    )
    assert account_for(measured, "tcp.handshake") == (0, CONNECTIONS)
    round_trips = measured.stage("tcp.rtt")
    assert round_trips.unmatched == CONNECTIONS
    assert round_trips.histogram.count >= CONNECTIONS
    assert round_trips.histogram.max_ns < PAUSE_SECONDS * 1000 * MS
    assert measured.counters["rttLeastNs"] <= round_trips.histogram.sum_ns


async def test_a_deferred_handshake_without_a_pause_bounds_the_least_round_trip(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    """The client's later ACKs are delayed, so the kernel has no shorter one."""
    measured = await handshakes(
        start_engine, pair, typed=typed, is_deferred=True, between_seconds=DELAYED_SECONDS
    )
    samples = measured.stage("tcp.rtt").histogram
    assert samples.min_ns >= DELAYED_SECONDS * 1000 * MS
    assert US * samples.count <= measured.counters["rttLeastNs"] < samples.sum_ns


async def test_the_time_stamp_of_a_syn_cookie_is_no_round_trip(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    """Its low bits are options, so it is up to 64 ms older than the SYN-ACK."""
    _, server = pair
    server.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_syncookies=2")
    measured = await handshakes(start_engine, pair, typed=typed)
    assert tcp_figures(server.namespace)["SyncookiesRecv"] == CONNECTIONS
    assert account_for(measured, "tcp.handshake") == (0, CONNECTIONS)
    assert measured.stage("tcp.rtt").unmatched == CONNECTIONS
    assert measured.stage("tcp.rtt").histogram.count >= CONNECTIONS
