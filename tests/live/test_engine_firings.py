"""How many of our programs run for the traffic of others, by the kernel's own count of runs.

Other work of this machine runs them too. So the same traffic is repeated in many short rounds: what
each round has is the traffic's.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from bench.programs import run_times
from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, account_for
from tests.live.pods import Pod
from tests.live.sockets import PORT, open_between, read_all, udp_socket

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
ROUNDS, MESSAGES = 60, 50
OF_UDP = {"sk_data_ready", "sock_recv_length"}


@contextmanager
def counting() -> Iterator[None]:
    """The kernel counts the runs of programs, of all processes."""
    statistics = libbpf.enable_run_time_statistics()
    try:
        yield
    finally:
        os.close(statistics)


def least_runs(traffic: Callable[[], None]) -> Mapping[str, int]:
    """By tracepoint: how often programs ran in the round that had the fewest."""
    least: dict[str, int] = {}
    for _ in range(ROUNDS):
        before = run_times(without=())
        traffic()
        for tracepoint, after in run_times(without=()).items():
            runs = (after - before[tracepoint]).runs
            least[tracepoint] = min(runs, least.get(tracepoint, runs))
    return least


async def use(start: Start, modules: frozenset[Module]) -> set[str]:
    """An engine for TCP that waits for targets in a namespace where there is nothing.

    Returns the tracepoint that listeners need on kernels without a better hook.
    """
    engine = start()
    engine.assign({0: SlotSpec(netns_wide=frozenset({1}), netns=frozenset({1}))})
    await engine.use(modules, udp=False)
    assert engine._object is not None
    _, _, listener = engine._object.attached.get("listener", "").partition("/")
    return {listener} & OF_UDP


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["stream", "dgram"])
async def test_messages_of_unix_sockets_run_no_program(
    start_engine: Start, kind: socket.SocketKind
) -> None:
    for_listeners = await use(start_engine, frozenset({Module.RX, Module.TCP}))
    one, other = socket.socketpair(socket.AF_UNIX, kind)

    def exchange() -> None:
        for _ in range(MESSAGES):
            one.sendall(b"x")
            other.recv(1)

    with one, other, counting():
        runs = least_runs(exchange)
    assert OF_UDP & runs.keys() == for_listeners
    assert {name for name, count in runs.items() if count >= MESSAGES} <= for_listeners


async def test_seven_programs_run_for_a_strangers_segment(start_engine: Start, pair: Pair) -> None:
    for_listeners = await use(start_engine, frozenset(DEFAULT_MODULES))
    client, server = pair
    with open_between(client, server) as both, counting():

        def exchange() -> None:
            for _ in range(MESSAGES // 2):
                both.client.sendall(b"q" * 64)
                read_all(both.server, 64)
                both.server.sendall(b"r" * 64)
                read_all(both.client, 64)

        runs = least_runs(exchange)
    often = {name for name, count in runs.items() if count >= MESSAGES // 2}
    expected = {
        *("softirq_entry", "netif_receive_skb", "tcp_probe", "tcp_rcv_space_adjust"),
        *("tcp_sendmsg_locked", "net_dev_queue", "net_dev_start_xmit"),
        *for_listeners,
    }
    assert expected - {"softirq_entry"} <= often <= expected  # one softirq for several segments
    assert sum(runs.values()) <= (len(expected) + 0.5) * MESSAGES


async def test_a_filter_without_udp_costs_only_udp_its_figures(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = start_engine()
    tcp = SocketFilter(protocols=frozenset({"TCP"}))
    for udp in (False, True):
        engine.assign(
            {
                slot: SlotSpec(
                    netns_wide=frozenset({pod.namespace.inode}),
                    netns=frozenset({pod.namespace.inode}),
                    socket_filter=SocketFilter() if udp else tcp,
                )
                for slot, pod in ((CLIENT, client), (SERVER, server))
            }
        )
        await engine.use(frozenset(DEFAULT_MODULES), udp=udp)
        covered = {stage.name: stage for stage in engine.coverage}
        assert covered["rx.socket"].state is CoverageState.ACTIVE
        assert covered["rx.socket"].reason == ("" if udp else "no probe asks for UDP")
        attached = Counter(run_times(without=()).keys())
        assert ("sock_recv_length" in attached) is udp
        with (
            open_between(client, server) as both,
            udp_socket(server.namespace, server.address, PORT + 1) as reading,
            udp_socket(client.namespace, family=socket.AF_INET) as sending,
        ):
            for _ in range(100):
                both.client.sendall(b"q")
                read_all(both.server, 1)
                sending.sendto(b"d", (server.address, PORT + 1))
                reading.recv(10)
        expected = 200 if udp else 100
        assert account_for(engine.read()[SERVER], "rx.total") == (expected, 0)
