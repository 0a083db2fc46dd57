"""How long a connection waits for accept(): measured where the kernel lets us see it return."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from tests.live.pods import Namespace, Pod, inside_cgroup
from tests.live.sockets import PATIENCE_SECONDS, connect, everything_in, listen, read_all
from tests.live.targets import until
from tests.live.truth import Durations, Moment

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


def waiting_connection(client: Namespace, listener: socket.socket) -> tuple[socket.socket, Moment]:
    """Connect; returns when the connection waits for accept(), with the moment."""
    began_ns = time.monotonic_ns()
    asking = connect(client, listener.getsockname()[0])
    assert select.select([listener], [], [], PATIENCE_SECONDS)[0], "nothing waits for accept()"
    return asking, Moment(began_ns, time.monotonic_ns())


def accept(listener: socket.socket) -> tuple[socket.socket, Moment]:
    """What waits, and when accept() returned it."""
    began_ns = time.monotonic_ns()
    answering, _ = listener.accept()
    return answering, Moment(began_ns, time.monotonic_ns())


@pytest.mark.every_kernel
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_busy_accept_loop_is_found_in_tcp_accept(
    start_engine: Start, pair: Pair, typed: bool
) -> None:
    client, server = pair
    engine, is_measured = await watch_server(start_engine, everything_in(server), typed=typed)
    waits = Durations()
    with listen(server.namespace, server.address) as listener:
        for _ in range(CONNECTIONS):
            asking, came = waiting_connection(client.namespace, listener)
            with asking:
                delay(100)
                answering, accepted = accept(listener)
                waits.add(came, accepted)
                answering.close()
    measured = engine.read()[SERVER]
    if not is_measured:
        assert "tcp.accept" not in measured.stages
        return
    assert account_for(measured, "tcp.accept") == (CONNECTIONS, 0)
    waited = measured.stage("tcp.accept").histogram
    waits.assert_are_in(waited)
    assert waited.min_ns > 99 * MS
    assert measured.stage("tcp.handshake").histogram.min_ns < 90 * MS


def sleeps_in_call(thread: threading.Thread, end: socket.socket) -> bool:
    """Whether a thread sleeps in a system call on a socket: its first argument."""
    call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    return call[1:2] == [hex(end.fileno())]


@pytest.mark.every_kernel
async def test_a_thread_that_waits_in_accept_gets_a_connection_at_once(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    spec = SlotSpec(tgids=frozenset({os.getpid()}), netns=everything_in(server).netns)
    engine, is_measured = await watch_server(start_engine, spec, typed=True)
    with listen(server.namespace, server.address) as listener:
        listener.settimeout(None)  # it sleeps in accept(), not in poll()
        accepted: list[int] = []

        def accept_each() -> None:
            for number in range(CONNECTIONS):
                listener.accept()[0].close()
                accepted.append(number)

        accepting = threading.Thread(target=accept_each, daemon=True)

        def waits_for(number: int) -> bool:
            return len(accepted) == number and sleeps_in_call(accepting, listener)

        accepting.start()
        for number in range(CONNECTIONS):
            # Who is awake may get one before its state says that it stands.
            until(partial(waits_for, number), "a thread that sleeps in accept()")
            connect(client.namespace, server.address).close()
        accepting.join()
    measured = engine.read()
    if is_measured:
        assert account_for(measured[SERVER], "tcp.accept") == (CONNECTIONS, 0)
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
    waits = Durations()
    with inside_cgroup(server.cgroup), listen(server.namespace, address) as listener:
        for _ in range(CONNECTIONS):
            asking, came = waiting_connection(client.namespace, listener)
            with asking:
                delay(30)
                answering, accepted = accept(listener)
                waits.add(came, accepted)
                answering.getpeername()  # is no other accept()
                answering.close()
    measured = engine.read()[SERVER]
    assert account_for(measured, "tcp.accept") == (CONNECTIONS, 0)
    waited = measured.stage("tcp.accept").histogram
    waits.assert_are_in(waited)
    assert waited.min_ns > 29 * MS


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
