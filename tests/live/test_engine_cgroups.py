"""Programs on the targets' cgroups in place of those that run for every socket."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bench.programs import counting_runs, run_times
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.foreign_programs import Flags, foreign, on_cgroup
from tests.live.measuring import CLIENT, SERVER, account_for, both
from tests.live.netfilter import load_rules
from tests.live.pods import Pod, cgroup, inside_cgroup, unified_cgroup_root
from tests.live.sockets import (
    Connection,
    connect,
    connection,
    everything_in,
    inside,
    listen,
    open_between,
    read_all,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
CONNECTIONS = 20
TCP = frozenset({Module.TCP})
DROP_PORT_9 = """
table inet silent {
  chain input {
    type filter hook input priority 0;
    tcp dport 9 drop
  }
}
"""
# Without the programs on cgroups, and with them.
HOOKS = pytest.mark.parametrize("without", [SCOPED_HOOKS, ()], ids=["tracepoint", "cgroup"])


def listen_in(pod: Pod) -> socket.socket:
    with inside_cgroup(pod.cgroup):
        return listen(pod.namespace, pod.address)


def connect_in(client: Pod, server: Pod) -> socket.socket:
    with inside_cgroup(client.cgroup):
        return connect(client.namespace, server.address)


@contextmanager
def connected(client: Pod, server: Pod) -> Iterator[Connection]:
    with listen_in(server) as listener, connect_in(client, server) as asking:
        answering, _ = listener.accept()
        with answering:
            yield Connection(asking, answering)


def connect_stage(engine: KernelEngine) -> StageCoverage:
    return next(stage for stage in engine.coverage if stage.name == "tcp.connect")


def own_program(engine: KernelEngine) -> int:
    """The descriptor of its program for the states of connections."""
    assert engine._object is not None
    return engine._object._owned.cgroup_programs["on_sock_ops"]


def check_cgroups_at_once(engine: KernelEngine) -> None:
    """Have the next reading check the programs of others, as seconds later."""
    assert engine._object is not None
    engine._object.cgroups._checked_at = -math.inf


def is_on_cgroup(engine: KernelEngine, pod: Pod) -> bool:
    return libbpf.program_info(own_program(engine)).id in on_cgroup(pod.cgroup)


def has_tracepoint() -> bool:
    return "inet_sock_set_state" in run_times(without=())


@pytest.mark.every_kernel
@HOOKS
async def test_each_connection_counts_once_at_both_ends(
    start_engine: Start, pair: Pair, without: tuple[str, ...]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, without=without)
    for _ in range(CONNECTIONS):
        with connected(client, server):
            pass
    measured = engine.read()
    assert account_for(measured[CLIENT], "tcp.connect") == (CONNECTIONS, 0)
    assert account_for(measured[SERVER], "tcp.handshake") == (CONNECTIONS, 0)
    assert "tcp.handshake" not in measured[CLIENT].stages
    assert "tcp.connect" not in measured[SERVER].stages
    connects = {
        name: number
        for name, number in measured[CLIENT].counters.items()
        if name.startswith("connect")
    }
    assert connects == {"connectCalls": CONNECTIONS, "connectsSent": CONNECTIONS}


@HOOKS
async def test_a_request_without_an_answer_before_the_end_is_unmatched(
    start_engine: Start, pair: Pair, without: tuple[str, ...]
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, without=without)
    with connected(client, server) as ends:
        ends.client.sendall(b"q")
        read_all(ends.server, 1)
        ends.client.shutdown(socket.SHUT_WR)
        ends.server.sendall(b"r")
        read_all(ends.client, 1)
    assert account_for(engine.read()[CLIENT], "peer.response") == (0, 1)


@HOOKS
async def test_a_connection_by_fast_open_has_one_handshake(
    start_engine: Start, pair: Pair, without: tuple[str, ...]
) -> None:
    client, server = pair
    for pod in pair:
        pod.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
    engine = await both(start_engine, client, server, without=without)
    with listen_in(server) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        for _ in range(2):  # the first one asks for the cookie
            with inside_cgroup(client.cgroup), inside(client.namespace):
                asking = socket.socket()
            with asking:
                asking.sendto(b"in the SYN", socket.MSG_FASTOPEN, listener.getsockname())
                answering, _ = listener.accept()
                with answering:
                    read_all(answering, 10)
                    answering.sendall(b"r")
                    read_all(asking, 1)
                    asking.sendall(b"q")
                    read_all(answering, 1)
    measured = engine.read()
    # The ACK of the client that asks for the cookie has data, as one after a pause would have.
    assert account_for(measured[SERVER], "tcp.handshake") == (1, 1)
    assert account_for(measured[CLIENT], "tcp.connect") == (2, 0)


async def test_a_tracepoint_runs_for_every_change_of_a_strangers_connection(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine(without=SCOPED_HOOKS)
    engine.assign({CLIENT: client.spec()})
    await engine.use(frozenset(DEFAULT_MODULES), udp=False)
    with counting_runs():
        before = run_times(without=())["inet_sock_set_state"]
        for _ in range(CONNECTIONS):
            with connection(server.namespace, server.namespace, server.address):
                pass
        after = run_times(without=())["inet_sock_set_state"]
    # Each end has five changes at least, and the listener two.
    assert (after - before).runs >= 12 * CONNECTIONS


async def test_connections_of_strangers_run_no_program_for_their_states(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec()})
    await engine.use(frozenset(DEFAULT_MODULES), udp=False)
    assert connect_stage(engine).hook == "sock_ops/tcp_set_state"
    assert not has_tracepoint()
    program = own_program(engine)
    with counting_runs():
        with connection(server.namespace, server.namespace, server.address):
            pass
        assert libbpf.program_info(program).run_cnt == 0
        with connected(client, server):
            pass
        assert libbpf.program_info(program).run_cnt > 0


async def test_a_target_that_is_no_cgroup_brings_the_tracepoint_for_all(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec()})
    await engine.use(TCP)
    assert is_on_cgroup(engine, client)
    with connected(client, server):
        pass
    engine.assign({CLIENT: client.spec(), SERVER: everything_in(server)})
    assert connect_stage(engine).hook.endswith("/inet_sock_set_state")
    assert connect_stage(engine).reason == ""
    assert has_tracepoint()
    assert not is_on_cgroup(engine, client)
    with connected(client, server):
        pass
    measured = engine.read()
    assert account_for(measured[CLIENT], "tcp.connect") == (2, 0)
    assert account_for(measured[SERVER], "tcp.handshake") == (1, 0)


@pytest.mark.parametrize("is_changed", [False, True], ids=["cgroup", "tracepoint later"])
async def test_a_connect_in_progress_ends_with_each_hook_that_sees_its_end(
    start_engine: Start, pair: Pair, is_changed: bool
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec()})
    await engine.use(TCP)
    load_rules(server, DROP_PORT_9)
    with inside_cgroup(client.cgroup), inside(client.namespace):
        asking = socket.socket()
    with asking:
        asking.setblocking(False)
        with suppress(BlockingIOError):
            asking.connect((server.address, 9))
        if is_changed:
            engine.assign({CLIENT: client.spec(), SERVER: everything_in(server)})
    counters = dict(engine.read()[CLIENT].counters)
    assert counters.pop("connectCalls") == counters.pop("connectsSent")
    assert counters.keys() == {"connectAborted", "connectAbortedNs"}


async def test_new_targets_get_programs_and_dropped_ones_lose_them(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({CLIENT: client.spec()})
    await engine.use(TCP)
    assert (is_on_cgroup(engine, client), is_on_cgroup(engine, server)) == (True, False)
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    assert (is_on_cgroup(engine, client), is_on_cgroup(engine, server)) == (True, True)
    engine.assign({SERVER: server.spec()})
    assert (is_on_cgroup(engine, client), is_on_cgroup(engine, server)) == (False, True)
    engine.assign({})
    assert on_cgroup(server.cgroup) == ()
    engine.assign({SERVER: server.spec()})
    assert is_on_cgroup(engine, server)
    assert not has_tracepoint()


@pytest.mark.parametrize("flags", [Flags.NONE, Flags.OVERRIDE])
@pytest.mark.parametrize("is_later", [False, True], ids=["before ours", "after ours"])
async def test_where_ours_would_disable_another_program_the_tracepoint_serves(
    start_engine: Start, pair: Pair, flags: Flags, is_later: bool
) -> None:
    client, server = pair
    with cgroup(f"{client.cgroup.name}/inner") as directory, foreign() as theirs:
        inner = replace(client, cgroup=directory)
        if not is_later:
            theirs.attach(client.cgroup, flags)
        engine = start_engine()
        engine.assign({CLIENT: inner.spec()})
        await engine.use(TCP)
        assert is_on_cgroup(engine, inner) is is_later
        if is_later:
            theirs.attach(client.cgroup, flags)
            check_cgroups_at_once(engine)
            engine.read()
        stage = connect_stage(engine)
        assert stage.state is CoverageState.ACTIVE
        assert stage.hook.endswith("/inet_sock_set_state")
        assert stage.reason == (
            f"sock_ops/tcp_set_state is not used on a target's cgroup: program {theirs.number} "
            "above it was attached without BPF_F_ALLOW_MULTI"
        )
        assert not is_on_cgroup(engine, inner)
        with connected(inner, server):
            pass
        assert account_for(engine.read()[CLIENT], "tcp.connect") == (1, 0)


async def test_flags_of_another_program_stay_and_ours_may_be_lost(
    start_engine: Start, pair: Pair
) -> None:
    """Theirs is above ours, so it runs after it and overwrites what ours has set."""
    client, server = pair
    with (
        counting_runs(),
        cgroup(f"{client.cgroup.name}/inner") as directory,
        foreign(sets_flag=True) as above,
        foreign(sets_flag=True) as beside,
    ):
        inner = replace(client, cgroup=directory)
        above.attach(client.cgroup, Flags.MULTI)
        engine = start_engine()
        engine.assign({CLIENT: inner.spec(), SERVER: server.spec()})
        beside.attach(server.cgroup, Flags.MULTI)  # ahead of ours, which keeps its flag
        await engine.use(TCP)
        with connected(inner, server) as ends:
            before = above.runs
            ends.client.sendall(b"q")
            read_all(ends.server, 1)
            ends.server.sendall(b"r")
            read_all(ends.client, 1)
            assert above.runs > before
        with connected(server, inner) as ends:
            before = beside.runs
            ends.client.sendall(b"q")
            read_all(ends.server, 1)
            ends.server.sendall(b"r")
            read_all(ends.client, 1)
            assert beside.runs > before
        measured = engine.read()
        for slot in (CLIENT, SERVER):
            assert account_for(measured[slot], "tcp.connect") == (1, 0)
            assert account_for(measured[slot], "tcp.handshake") == (1, 0)


async def test_on_request_no_program_is_on_a_cgroup(
    start_engine: Start, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENCYPROBE_HOOKS", "tracepoints")
    client, server = pair
    engine = await both(start_engine, client, server)
    assert connect_stage(engine).hook.endswith("/inet_sock_set_state")
    assert on_cgroup(client.cgroup) == ()
    with open_between(client, server):
        pass


@contextmanager
def below(directory: Path, *names: str) -> Iterator[Path]:
    """A new cgroup below another, each of these names a level."""
    with ExitStack() as stack:
        for name in names:
            path = (directory / name).relative_to(unified_cgroup_root())
            directory = stack.enter_context(cgroup(str(path)))
        yield directory


@pytest.mark.every_kernel
@HOOKS
@pytest.mark.parametrize("levels", [1, 6])
async def test_a_cgroup_made_below_a_target_is_measured_before_the_agent_lists_it(
    start_engine: Start, pair: Pair, without: tuple[str, ...], levels: int
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server, without=without)
    with below(client.cgroup, *(f"level{number}" for number in range(levels))) as nested:
        with listen_in(server) as listener:
            with inside_cgroup(nested):
                asking = connect(client.namespace, server.address)
            answering, _ = listener.accept()
        with asking, answering:
            asking.sendall(b"q")
            read_all(answering, 1)
            answering.sendall(b"r")
            read_all(asking, 1)
    measured = engine.read()[CLIENT]
    assert account_for(measured, "tcp.connect") == (1, 0)
    assert account_for(measured, "rx.socket") == (1, 0)


@pytest.mark.every_kernel
async def test_a_cgroup_beside_a_target_stays_a_strangers_until_it_is_a_target(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    stranger = cgroup(f"{client.cgroup.name}-beside")
    with stranger as beside, listen_in(server) as listener:
        for _ in range(2):
            with inside_cgroup(beside), connect(client.namespace, server.address):
                listener.accept()[0].close()
        assert CLIENT not in engine.read()
        at_once = replace(client.spec(), cgroup_ids=frozenset({beside.stat().st_ino}))
        engine.assign({CLIENT: replace(at_once, cgroup_directories=frozenset({str(beside)}))})
        with inside_cgroup(beside), connect(client.namespace, server.address):
            listener.accept()[0].close()
    assert account_for(engine.read()[CLIENT], "tcp.connect") == (1, 0)
