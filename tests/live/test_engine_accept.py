"""How long a connection waits for accept(): measured where the kernel lets us see it return."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    SERVER,
    account_for,
    are_bound_by_btf,
    assert_parts_add_up,
    watch,
)
from tests.live.pods import Pod, inside_cgroup
from tests.live.sockets import connect, everything_in, listen, read_all
from tests.live.truth import BUCKET, Durations, Moment

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
MS = 1_000_000
BY_NAME = "cgroup_sock_addr/getpeername4"
CONNECTIONS = 10
REQUESTS = 40


async def watch_server(start: Start, spec: SlotSpec, *, typed: bool) -> tuple[KernelEngine, bool]:
    """An engine on the server, and whether it can measure tcp.accept; else it says why not."""
    engine = start(typed=typed)
    engine.assign({SERVER: spec})
    await engine.use(frozenset({Module.TCP}))
    (coverage,) = (stage for stage in engine.coverage if stage.name == "tcp.accept")
    if coverage.state is CoverageState.ACTIVE:
        kind = "fexit" if are_bound_by_btf(engine) else "kretprobe"
        assert f"{kind}/inet_csk_accept" in coverage.hook
        return engine, True
    assert coverage.state is CoverageState.UNAVAILABLE
    assert coverage.reason.startswith("fexit/inet_csk_accept: ")
    assert "; kretprobe/inet_csk_accept: " in coverage.reason
    return engine, False


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_busy_accept_loop_is_found_in_tcp_accept(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    client, server = pair
    engine, is_measured = await watch_server(start_engine, everything_in(server), typed=typed)
    waited_ns = []
    with listen(server.namespace, server.address) as listener:
        for _ in range(CONNECTIONS):
            with connect(client.namespace, server.address):
                connected_ns = time.monotonic_ns()
                delay(100)
                answering, _ = listener.accept()
                waited_ns.append(time.monotonic_ns() - connected_ns)
                answering.close()
    measured = engine.read()[SERVER]
    if not is_measured:
        assert "tcp.accept" not in measured.stages
        return
    assert account_for(measured, "tcp.accept") == (CONNECTIONS, 0)
    mean_ns = sum(waited_ns) / CONNECTIONS
    accept = measured.stage("tcp.accept").histogram
    assert accept.mean_ns == pytest.approx(mean_ns, rel=BUCKET - 1)
    assert accept.min_ns > 99 * MS
    assert measured.stage("tcp.handshake").histogram.min_ns < 90 * MS


@pytest.mark.every_kernel
async def test_a_thread_that_waits_in_accept_gets_a_connection_at_once(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    spec = SlotSpec(tgids=frozenset({os.getpid()}), netns=everything_in(server).netns)
    engine, is_measured = await watch_server(start_engine, spec, typed=True)
    with listen(server.namespace, server.address) as listener:

        def accept() -> None:
            for _ in range(CONNECTIONS):
                listener.accept()[0].close()

        accepting = threading.Thread(target=accept)
        accepting.start()
        for _ in range(CONNECTIONS):
            connect(client.namespace, server.address).close()
        accepting.join()
    measured = engine.read()
    if is_measured:
        # Who is awake may get one before its state says that it stands.
        samples, missing = account_for(measured[SERVER], "tcp.accept")
        assert samples + missing == CONNECTIONS
        assert missing <= 2
        assert measured[SERVER].stage("tcp.accept").histogram.min_ns < 90 * MS


async def watch_pod(start: Start, pod: Pod) -> tuple[KernelEngine, bool]:
    """An engine on a pod's cgroup, and whether programs on the cgroup show accept()."""
    engine = start()
    engine.assign({SERVER: pod.spec()})
    await engine.use(frozenset({Module.TCP}))
    (coverage,) = (stage for stage in engine.coverage if stage.name == "tcp.accept")
    is_on_cgroup = BY_NAME in coverage.hook
    state = CoverageState.PARTIAL if is_on_cgroup else CoverageState.ACTIVE
    assert coverage.state is state, coverage
    return engine, is_on_cgroup


@pytest.mark.parametrize("version", [4, 6])
async def test_a_busy_accept_loop_of_a_pod_is_found_in_tcp_accept_on_any_kernel(
    start_engine: Start, pair: Pair, version: int
) -> None:
    client, server = pair
    address = server.address if version == 4 else server.address6
    engine, _ = await watch_pod(start_engine, server)
    waited_ns = []
    with inside_cgroup(server.cgroup), listen(server.namespace, address) as listener:
        for _ in range(CONNECTIONS):
            with connect(client.namespace, address):
                connected_ns = time.monotonic_ns()
                delay(30)
                answering, _ = listener.accept()
                waited_ns.append(time.monotonic_ns() - connected_ns)
                answering.getpeername()  # is no other accept()
                answering.close()
    measured = engine.read()[SERVER]
    assert account_for(measured, "tcp.accept") == (CONNECTIONS, 0)
    accept = measured.stage("tcp.accept").histogram
    assert accept.min_ns > 29 * MS
    assert accept.mean_ns == pytest.approx(sum(waited_ns) / CONNECTIONS, rel=BUCKET - 1)


async def test_a_name_that_is_asked_for_after_a_read_is_no_accept(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine, is_on_cgroup = await watch_pod(start_engine, server)
    with (
        inside_cgroup(server.cgroup),
        listen(server.namespace, server.address) as listener,
        connect(client.namespace, server.address) as asking,
    ):
        asking.sendall(b"request")
        with accept_without_address(listener) as answering:
            read_all(answering, 7)
            answering.getpeername()
    if is_on_cgroup:
        assert account_for(engine.read()[SERVER], "tcp.accept") == (0, 1)


def accept_without_address(listener: socket.socket) -> socket.socket:
    """accept(fd, NULL, NULL), as libuv calls it."""
    listener.setblocking(True)
    descriptor = ctypes.CDLL(None, use_errno=True).accept(listener.fileno(), None, None)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=descriptor)


@pytest.mark.every_kernel
@pytest.mark.parametrize(("typed", "version"), [(True, 4), (False, 6)], ids=["tp_btf", "raw_tp"])
async def test_a_request_that_completes_the_handshake_waits_in_rx_socket(
    start_engine: Start, pair: Pair, typed: bool, version: int
) -> None:
    client, server = pair
    address = server.address if version == 4 else server.address6
    engine = await watch(start_engine, client, server, typed=typed)
    waits = Durations()
    with listen(server.namespace, address) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        for number in range(REQUESTS):
            with connect(client.namespace, address) as asking:
                # listener.accept() returns when the request is in the new socket's queue
                began_ns = time.monotonic_ns()
                asking.sendall(b"request")
                answering, _ = listener.accept()
                came = Moment(began_ns, time.monotonic_ns())
                with answering:
                    delay(3 + number % 8)
                    waits.add(came, Moment.of(partial(read_all, answering, 7)))
                    answering.sendall(b"answer")
                    read_all(asking, 6)
    measured = engine.read()
    for stage in ("rx.stack", "rx.socket", "rx.total"):
        assert account_for(measured[SERVER], stage) == (REQUESTS, 0), stage
    waits.assert_are_in(measured[SERVER].stage("rx.socket").histogram)
    assert measured[SERVER].stage("rx.stack").histogram.min_ns < MS
    assert_parts_add_up(measured[SERVER], "rx")
    assert account_for(measured[SERVER], "app.response") == (REQUESTS, 0)


def delay(milliseconds: float) -> None:
    """Hold up whoever is measured."""
    time.sleep(milliseconds / 1e3)
