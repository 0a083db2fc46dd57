"""Whose sockets count: by cgroup and by process, where several share a network namespace."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.programs import run_times
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.abi import MAX_OWNERS, PROCESSES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, count
from tests.live.pods import Pod, cgroup, inside_cgroup
from tests.live.sockets import connect, inside, listen, read_all

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
MESSAGES = 20
ATTEMPTS = 20
OF_PROCESSES = {"sched_process_fork", "sched_process_exit"}
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")  # the next process has the next free id


def send_some(client: Pod, server: Pod, listener: socket.socket) -> None:
    """A connection with some messages, read by this process."""
    with connect(client.namespace, server.address, listener.getsockname()[1]) as asking:
        answering, _ = listener.accept()
        with answering:
            for _ in range(MESSAGES):
                asking.sendall(b"q")
                read_all(answering, 1)


def received(engine: KernelEngine) -> int:
    return count(engine.read().get(SERVER, NOTHING), "rx.total")


@pytest.mark.every_kernel
async def test_a_socket_belongs_to_the_cgroup_that_it_was_made_in(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({SERVER: server.spec()})
    await engine.use(frozenset(DEFAULT_MODULES))
    with (
        inside_cgroup(server.cgroup),
        listen(server.namespace, server.address, 7001) as made_inside,
    ):
        send_some(client, server, made_inside)
        assert received(engine) == MESSAGES
        with cgroup(f"{server.cgroup.name}-elsewhere") as elsewhere, inside_cgroup(elsewhere):
            # the process has moved: what it had made stays, also for connections accepted later
            send_some(client, server, made_inside)
            assert received(engine) == MESSAGES
            with listen(server.namespace, server.address, 7002) as made_elsewhere:
                send_some(client, server, made_elsewhere)
            assert received(engine) == 0


@pytest.mark.every_kernel
async def test_sockets_of_a_cgroup_outlive_its_directory(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = start_engine()
    with cgroup(f"{server.cgroup.name}-short") as short:
        identity = frozenset({short.stat().st_ino})
        engine.assign({SERVER: SlotSpec(cgroup_ids=identity, netns=server.spec().netns)})
        await engine.use(frozenset(DEFAULT_MODULES))
        with inside_cgroup(short):
            listener = listen(server.namespace, server.address)
    with listener:
        send_some(client, server, listener)
    assert received(engine) == MESSAGES


@pytest.mark.every_kernel
async def test_a_socket_of_more_probes_than_have_room_counts_for_the_first_ones(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    spec = server.spec()
    by_namespace = {slot: SlotSpec(netns_wide=spec.netns, netns=spec.netns) for slot in range(3)}
    by_cgroup = dict.fromkeys(range(3, 6), spec)
    engine.assign({**by_namespace, **by_cgroup})
    await engine.use(frozenset(DEFAULT_MODULES))
    with inside_cgroup(server.cgroup), listen(server.namespace, server.address) as listener:
        send_some(client, server, listener)
    counts = {slot: count(of, "rx.total") for slot, of in engine.read().items()}
    assert counts.keys() > by_namespace.keys()
    assert list(counts.values()) == [MESSAGES] * MAX_OWNERS


@pytest.mark.every_kernel
async def test_a_process_is_followed_through_its_forks(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({SERVER: SlotSpec(tgids=frozenset({os.getpid()}), netns=server.spec().netns)})
    await engine.use(frozenset(DEFAULT_MODULES))
    with listen(server.namespace, server.address) as listener:
        serve_by_a_grandchild(listener)
        be_answered(client, listener)
    assert received(engine) == MESSAGES


@pytest.mark.every_kernel
async def test_forks_run_a_program_only_while_a_target_is_chosen_by_process(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    by_cgroup = {CLIENT: client.spec()}
    by_process = SlotSpec(tgids=frozenset({os.getpid()}), netns=server.spec().netns)
    engine.assign(by_cgroup)
    await engine.use(frozenset(DEFAULT_MODULES))
    with listen(server.namespace, server.address) as listener:
        for _ in range(2):
            assert not attached() & OF_PROCESSES
            assert sent_packets(engine).state is CoverageState.ACTIVE
            engine.assign({**by_cgroup, SERVER: by_process})
            serve_by_a_grandchild(listener)
            assert attached() >= OF_PROCESSES
            assert "/sched_process_fork" in sent_packets(engine).hook
            be_answered(client, listener)
            assert received(engine) == MESSAGES
            engine.assign(by_cgroup)
            assert engine._object is not None
            assert engine._object.maps.keys(PROCESSES.name, PROCESSES.key.size) == set()


async def test_the_next_first_target_decides_again_whether_forks_run_a_program(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec()})
    await engine.use(frozenset(DEFAULT_MODULES))
    for netns in (server.spec().netns, client.spec().netns):
        engine.assign({})
        engine.assign({SERVER: SlotSpec(tgids=frozenset({os.getpid()}), netns=netns)})
        assert attached() >= OF_PROCESSES
        engine.assign({})
        engine.assign({CLIENT: client.spec()})
        assert not attached() & OF_PROCESSES


def attached() -> set[str]:
    """The tracepoints and functions of this process's programs."""
    return set(run_times(without=()))


def sent_packets(engine: KernelEngine) -> StageCoverage:
    """The coverage of a stage that forks matter to."""
    (stage,) = (stage for stage in engine.coverage if stage.name == "tx.total")
    return stage


def serve_by_a_grandchild(listener: socket.socket) -> None:
    """Have it answer one connection until its end; the process between ends at once."""
    child = started(lambda: started(lambda: answer(listener)))
    os.waitpid(child, 0)


def answer(listener: socket.socket) -> None:
    """One connection, until its end."""
    answering, _ = listener.accept()
    while answering.recv(1):
        answering.sendall(b"r")


@pytest.mark.every_kernel
async def test_a_new_process_is_not_taken_for_an_ended_one_with_its_id(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    await engine.use(frozenset(DEFAULT_MODULES))
    with listen(server.namespace, server.address) as listener:
        for _ in range(ATTEMPTS):
            ended = process_that_ended()
            spec = SlotSpec(tgids=frozenset({ended}), netns=server.spec().netns)
            engine.assign({SERVER: spec})
            if be_answered_by_the_next_process_after(ended - 1, client, listener) == ended:
                break
        else:
            raise AssertionError(f"another process had the id first, {ATTEMPTS} times")
    assert received(engine) == 0


def process_that_ended() -> int:
    child = started(lambda: None)
    os.waitpid(child, 0)
    return child


def be_answered_by_the_next_process_after(pid: int, client: Pod, listener: socket.socket) -> int:
    """Returns its id: one more, unless another process had it first."""
    LAST_PID.write_text(str(pid))
    child = started(lambda: answer(listener))
    be_answered(client, listener)
    os.waitpid(child, 0)
    return child


def be_answered(client: Pod, listener: socket.socket) -> None:
    """One connection of the client's, with an answer to each message."""
    with connect(client.namespace, listener.getsockname()[0]) as asking:
        for _ in range(MESSAGES):
            asking.sendall(b"q")
            read_all(asking, 1)


def started(work: Callable[[], object]) -> int:
    """A child that does it and ends."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.every_kernel
async def test_a_stranger_in_the_same_namespace_is_never_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    netns = server.spec().netns
    engine.assign(
        {
            SERVER: SlotSpec(cgroup_ids=server.spec().cgroup_ids, netns=netns),
            SERVER + 1: SlotSpec(tgids=frozenset({1}), netns=netns),
        }
    )
    await engine.use(frozenset(DEFAULT_MODULES))
    with listen(server.namespace, server.address) as listener:
        send_some(client, server, listener)
    with inside(server.namespace):
        one, other = socket.socketpair()
    with one, other:
        one.sendall(b"x")
        other.recv(1)
    assert engine.read() == {}
