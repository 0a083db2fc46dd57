"""The bound of the memory that sockets take: what is beyond it is lost, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import NOTHING, Measurement, StageMeasurement
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.abi import MEMORY_FOR_ALL, MEMORY_OF_NODE
from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter, SocketMemoryLimits
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import SERVER, account_for, are_bound_by_btf
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    Connection,
    connect,
    connection,
    everything_in,
    inside,
    read_all,
    send_unread,
    udp_socket,
    wait_for_bytes,
)
from tests.live.targets import python, until

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
CROWDED, OTHER = 3, 4
SOCKETS = 30
MOST = 10
COUNTS = 400
# Ends by resets, so that no connection waits for the last packets of the peer.
CHURN = """
import select, socket, struct, sys

listener = socket.create_server(("127.0.0.1", 0))
reset = struct.pack("ii", 1, 0)
made = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.sendall(b"q")
        server.recv(1)
        server.sendall(b"r")
        client.recv(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    if not made:
        print("ready", flush=True)
    made += 1
print(made)
"""


async def watch_server(start: Start, server: Pod, limits: SocketMemoryLimits) -> KernelEngine:
    engine = start(socket_memory=limits)
    engine.assign({SERVER: everything_in(server)})
    await engine.use(frozenset(DEFAULT_MODULES))
    return engine


@contextmanager
def connections(client: Pod, server: Pod, number: int, port: int = PORT) -> Iterator[None]:
    """As many at once, each with one request and its answer."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(
                connection(client.namespace, server.namespace, server.address, port=port + place)
            )
            for place in range(number)
        ]
        for both in made:
            ask(both)
        yield


def ask(both: Connection) -> None:
    both.client.sendall(b"q" * 100)
    read_all(both.server, 100)
    both.server.sendall(b"r" * 100)
    read_all(both.client, 100)


def taken(engine: KernelEngine, slot: int = SERVER) -> Measurement:
    """Return what was measured."""
    return engine.read().get(slot, NOTHING)


def until_room(engine: KernelEngine, place: int = SERVER) -> None:
    """Read until closed sockets are no longer counted: the kernel frees them a little later."""

    def is_there_room() -> bool:
        taken(engine)
        memory = engine._bounds.socket_memory
        return memory is not None and memory._use(place) == (0, 0)

    until(is_there_room, f"the room of closed sockets at {place}")


def until_half_is_free(engine: KernelEngine) -> int:
    """Read until no more sockets are counted; return how many the kernel has yet to free."""
    memory = engine._bounds.socket_memory
    assert memory is not None

    def is_half_free() -> bool:
        taken(engine)
        return 2 * memory._use(SERVER).kib <= MOST

    until(is_half_free, "half of the room of closed sockets")
    return memory._use(SERVER).kib


@pytest.mark.parametrize(
    "limits", [SocketMemoryLimits(MOST, 1000), SocketMemoryLimits(1000, MOST)], ids=["own", "node"]
)
async def test_sockets_beyond_the_bound_are_lost_until_others_are_closed(
    start_engine: Start, pair: Pair, limits: SocketMemoryLimits
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, limits)
    for _ in range(3):
        with connections(client, server, SOCKETS):
            measured = taken(engine)
            stages = {stage.name: stage for stage in engine.coverage}
            assert stages["rx.total"].state is CoverageState.ACTIVE
            (lost,) = engine.lost_parts[SERVER]
            assert "memory for sockets is full" in lost.reason
            for name in ("rx.socket", "tx.total", "tcp.handshake", "app.response"):
                stage = measured.stage(name)
                assert 0 < stage.histogram.count <= MOST, name
                assert stage.histogram.count + stage.lost == SOCKETS, name
                assert stage.unmatched == 0, name
    with connections(client, server, MOST // 2 - 1):  # each has a listener beside it
        measured = taken(engine)
    for name in ("rx.socket", "tx.total", "tcp.handshake", "app.response"):
        assert account_for(measured, name) == (MOST // 2 - 1, 0), name
    taken(engine)
    assert not engine.lost_parts


@pytest.mark.every_kernel
async def test_sockets_are_bounded_by_their_memory_or_without_btf_by_tables_of_a_fixed_size(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    with connections(client, server, SOCKETS):
        stage = taken(engine).stage("rx.socket")
    if are_bound_by_btf(engine):
        assert 0 < stage.histogram.count <= MOST
    else:
        assert stage.histogram.count == SOCKETS
    assert stage.histogram.count + stage.lost == SOCKETS


async def test_sockets_that_are_known_by_their_process_are_within_the_bound_of_the_node(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine(socket_memory=SocketMemoryLimits(MOST, 2 * MOST))
    netns = frozenset({server.namespace.inode})
    engine.assign({SERVER: SlotSpec(tgids=frozenset({os.getpid()}), netns=netns)})
    await engine.use(frozenset(DEFAULT_MODULES))
    memory = engine._bounds.socket_memory
    assert memory is not None
    with connections(client, server, SOCKETS):
        stage = taken(engine).stage("rx.socket")
        # Their states are there before their process is known: the target's own bound is late.
        assert 0 < memory._use(MEMORY_OF_NODE).kib <= 2 * MOST
    assert 0 < stage.histogram.count <= 2 * MOST
    assert stage.histogram.count + stage.lost == SOCKETS
    for place in (SERVER, MEMORY_OF_NODE):
        until_room(engine, place)


async def test_a_target_beyond_its_bound_costs_no_other_one_its_figures(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine(socket_memory=SocketMemoryLimits(MOST, 1000))
    crowded = frozenset(range(PORT, PORT + SOCKETS))
    engine.assign(
        {
            CROWDED: replace(everything_in(server), socket_filter=SocketFilter(ports=crowded)),
            OTHER: replace(
                everything_in(server), socket_filter=SocketFilter(ports=frozenset({PORT + SOCKETS}))
            ),
        }
    )
    await engine.use(frozenset(DEFAULT_MODULES))
    with (
        connections(client, server, SOCKETS),
        connections(client, server, 1, PORT + SOCKETS),
    ):
        measured = engine.read()
    assert engine.lost_parts.keys() == {CROWDED}
    assert measured[CROWDED].stage("rx.socket").lost > 0
    for name in ("rx.socket", "tx.total", "tcp.handshake"):
        assert account_for(measured[OTHER], name) == (1, 0), name


async def test_a_tenant_that_fills_the_nodes_memory_leaves_another_ones_share(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    share = 12  # of 72: half is divided by two tenants and one to come
    engine = start_engine(socket_memory=SocketMemoryLimits(1000, 6 * share))
    slots = {}
    for slot, tenant, first in ((CROWDED, "crowd", PORT), (OTHER, "other", PORT + 3 * SOCKETS)):
        ports = frozenset(range(first, first + 3 * SOCKETS))
        watched = replace(everything_in(server), socket_filter=SocketFilter(ports=ports))
        slots[slot] = replace(watched, tenant=tenant)
    engine.assign(slots)
    await engine.use(frozenset(DEFAULT_MODULES))
    few = share // 2  # each has a listener beside it
    with (
        connections(client, server, 3 * SOCKETS),
        connections(client, server, few, PORT + 3 * SOCKETS),
    ):
        measured = engine.read()
    assert engine.lost_parts.keys() == {CROWDED}
    assert measured[CROWDED].stage("rx.socket").lost > 0
    for name in ("rx.socket", "tx.total", "tcp.handshake"):
        assert account_for(measured[OTHER], name) == (few, 0), name


async def test_a_new_target_of_a_slot_does_not_pay_for_the_sockets_of_the_one_before(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    # Listeners from before are not its own: each would take room as soon as it is read.
    ports = frozenset(range(PORT + SOCKETS, PORT + SOCKETS + MOST))
    new = replace(everything_in(server), socket_filter=SocketFilter(ports=ports))
    with connections(client, server, SOCKETS):
        engine.assign({OTHER: everything_in(client)})
        engine.assign({OTHER: everything_in(client), SERVER: new})
        engine.read()
        with connections(client, server, MOST // 2 - 1, PORT + SOCKETS):
            measured = taken(engine)
    assert account_for(measured, "rx.socket") == (MOST // 2 - 1, 0)


async def test_sockets_of_a_target_that_has_another_slot_take_no_room_of_its_first_ones_new_target(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    first, second = (
        replace(everything_in(server), socket_filter=SocketFilter(ports=frozenset(ports)))
        for ports in ({PORT}, range(PORT + 1, PORT + SOCKETS))
    )
    engine = start_engine(socket_memory=SocketMemoryLimits(MOST, 1000))
    engine.assign({SERVER: first})
    await engine.use(frozenset(DEFAULT_MODULES))
    with connection(client.namespace, server.namespace, server.address) as both:
        ask(both)
        engine.assign({OTHER: first})
        engine.assign({OTHER: first, SERVER: second})
        for sent in range(1, 21):  # they need a ring
            both.client.sendall(b"q" * 100)
            wait_for_bytes(both.server, 100 * sent)
        engine.read()
        with connections(client, server, MOST // 2 - 1, PORT + 1):
            measured = taken(engine)
    assert not engine.lost_parts
    assert account_for(measured, "rx.socket") == (MOST // 2 - 1, 0)


async def test_no_socket_that_comes_or_goes_during_a_count_is_charged_for_ever(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    most = 6 * SOCKETS
    engine = await watch_server(start_engine, server, SocketMemoryLimits(most, 1000))
    with udp_socket(client.namespace) as sending, ExitStack() as stack:
        for port in range(PORT, PORT + most // 2 + SOCKETS):  # each reading counts
            reading = stack.enter_context(udp_socket(server.namespace, server.address, port))
            send_unread(sending, reading, b"d", 1)
        with churn(server):
            for _ in range(COUNTS):
                engine.read()
    for place in (SERVER, MEMORY_OF_NODE, MEMORY_FOR_ALL):
        until_room(engine, place)

    def fit(number: int) -> bool:
        """Whether there is room for so many connections, with a listener each."""
        with connections(client, server, number):
            taken(engine)
            return SERVER not in engine.lost_parts

    # On a busy machine a handshake may need another socket for a moment.
    assert any(fit(most // 2) for _ in range(3))
    assert not fit(most // 2 + 1)


@contextmanager
def churn(pod: Pod) -> Iterator[None]:
    """Connections within a pod, one after another."""
    join = ["ip", "netns", "exec", pod.namespace.name]
    with subprocess.Popen(
        [*join, *python(CHURN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        output, _ = process.communicate("\n", timeout=PATIENCE_SECONDS)
        assert int(output) > COUNTS


def bound_connections(client: Pod, server: Pod, engine: KernelEngine) -> tuple[int, int]:
    """(samples, packets known to be missing) of as many connections as there is room for."""
    with connections(client, server, MOST // 2, PORT + SOCKETS):  # each has a listener beside it
        return account_for(taken(engine), "rx.socket")


@pytest.mark.every_kernel
async def test_raw_sockets_are_no_connections_and_take_no_room(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    with inside(server.namespace):
        for _ in range(SOCKETS):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
                raw.sendto(bytes(20), (client.address, 0))
    assert bound_connections(client, server, engine) == (MOST // 2, 0)


@pytest.mark.every_kernel
async def test_the_kernels_own_sockets_for_answers_take_no_room(
    start_engine: Start, pair: Pair
) -> None:
    """It answers from one on each CPU what belongs to no socket, and they never end."""
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            for address in (server.address, server.address6):
                with pytest.raises(ConnectionRefusedError):
                    connect(client.namespace, address)
    finally:
        os.sched_setaffinity(0, allowed)
    assert bound_connections(client, server, engine) == (MOST // 2, 0)


async def test_without_room_for_a_ring_the_first_segments_are_samples(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(4, 1000))
    with connection(client.namespace, server.namespace, server.address) as both:
        for sent in range(1, 21):
            both.client.sendall(b"q" * 100)
            wait_for_bytes(both.server, 100 * sent)
        read_all(both.server, 20 * 100)
        stage = taken(engine).stage("rx.socket")
    assert (stage.histogram.count, stage.lost, stage.unmatched) == (4, 16, 0)


async def test_datagram_sockets_that_were_closed_make_room(start_engine: Start, pair: Pair) -> None:
    """Nothing reports their end: they are counted again with a reading, once half is in use."""
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    left = 0
    with udp_socket(client.namespace) as sending:
        for _ in range(5):
            for _ in range(MOST):
                with udp_socket(server.namespace, server.address, PORT) as reading:
                    send_unread(sending, reading, b"d", 1)
                    reading.recv(16)
            stage = taken(engine).stage("rx.socket")
            assert (stage.histogram.count + stage.lost, stage.unmatched) == (MOST, 0)
            assert stage.lost <= left
            left = until_half_is_free(engine)


async def test_datagram_sockets_that_are_open_take_their_room(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    with udp_socket(client.namespace) as sending, ExitStack() as stack:

        def receive_at(ports: range) -> StageMeasurement:
            for port in ports:
                reading = stack.enter_context(udp_socket(server.namespace, server.address, port))
                send_unread(sending, reading, b"d", 1)
                reading.recv(16)
            return taken(engine).stage("rx.socket")

        stage = receive_at(range(PORT, PORT + MOST)) + receive_at(
            range(PORT + MOST, PORT + SOCKETS)
        )
    assert (stage.histogram.count, stage.lost, stage.unmatched) == (MOST, SOCKETS - MOST, 0)


@pytest.mark.every_kernel
async def test_datagram_sockets_that_no_process_has_open_take_their_room(
    start_engine: Start, pair: Pair
) -> None:
    """A message that nobody has received holds them."""
    client, server = pair
    engine = await watch_server(start_engine, server, SocketMemoryLimits(MOST, 1000))
    assert engine._object is not None
    attached = engine._object.attached
    are_all_counted = attached.get("socket count") == "iter/bpf_sk_storage_map"
    lost = SOCKETS - MOST if are_all_counted else SOCKETS - 2 * MOST  # else those of processes
    if not are_bound_by_btf(engine) or "UDP queue" not in attached:
        lost = 0  # their states are in tables of a fixed size, or there are none
    holding, message = socket.socketpair()
    with holding, message, udp_socket(client.namespace) as sending:

        def receive_at(ports: range) -> StageMeasurement:
            for port in ports:
                with udp_socket(server.namespace, server.address, port) as reading:
                    send_unread(sending, reading, b"d", 1)
                    reading.recv(16)
                    if not message._closed:  # type: ignore[attr-defined]
                        socket.send_fds(holding, [b"s"], [reading.fileno()])
            return taken(engine).stage("rx.socket")

        assert receive_at(range(PORT, PORT + MOST)).lost == 0
        more = receive_at(range(PORT + MOST, PORT + SOCKETS))
        assert more.lost == lost
        message.close()
        until_room(engine)
        assert receive_at(range(PORT, PORT + MOST)).histogram.count == MOST
