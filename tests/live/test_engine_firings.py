"""How many of our programs run for the traffic of others.

The kernel counts the runs of all processes' traffic together, so a count is a lower limit. The
upper one is what is attached: every tracepoint stands in one of the sets below.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from bench.programs import counting_runs, run_times
from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, NO_VARIABLES, SERVER, account_for, let_drivers_rest
from tests.live.pods import Pod
from tests.live.sockets import PORT, open_between, read_all, udp_socket

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
MESSAGES = 1000
# Once a packet of TCP, over a veth pair.
OF_A_SEGMENT = {
    *("softirq_entry", "netif_receive_skb", "tcp_probe", "tcp_rcv_space_adjust"),
    *("tcp_sendmsg_locked", "net_dev_queue", "net_dev_start_xmit"),
}
OF_A_SOFTIRQ = {"softirq_raise", "softirq_exit"}
# Once a packet of TCP, a datagram and a UNIX message.
OF_A_MESSAGE = {"sk_data_ready", "sock_recv_length"}
# Once a freed buffer: of UNIX sockets, and where a driver completes.
OF_A_BUFFER = {"consume_skb"}
RARE = {
    *("sched_process_fork", "sched_process_exit", "irq_handler_entry", "irq_handler_exit"),
    *("kfree_skb", "inet_sock_set_state", "inet_csk_accept", "udp_fail_queue_rcv_skb"),
    *("tcp_retransmit_skb", "tcp_retransmit_synack", "tcp_cong_state_set"),
    *("tcp_send_reset", "tcp_receive_reset", "tcp_destroy_sock"),
}


async def use(start: Start, modules: frozenset[Module], without: tuple[str, ...] = ()) -> set[str]:
    """An engine for TCP that waits for targets in a namespace where there is nothing.

    Returns the tracepoint that listeners need on kernels whose counts cannot be read.
    """
    return await prepare(start(without=without), modules)


async def prepare(engine: KernelEngine, modules: frozenset[Module]) -> set[str]:
    """The same with an engine that the test keeps."""
    engine.assign({0: SlotSpec(netns_wide=frozenset({1}), netns=frozenset({1}))})
    await engine.use(modules, udp=False)
    assert engine._object is not None
    _, _, listener = engine._object.attached.get("listener", "").partition("/")
    return {listener} & OF_A_MESSAGE


def attached() -> set[str]:
    """The tracepoints and functions of this process's programs."""
    return set(run_times(without=()))


async def test_messages_of_unix_sockets_run_no_program(start_engine: Start) -> None:
    for_listeners = await use(start_engine, frozenset({Module.RX, Module.TCP}))
    assert attached() & (OF_A_MESSAGE | OF_A_BUFFER) == for_listeners
    assert attached() <= OF_A_SEGMENT | RARE | for_listeners


async def test_messages_of_unix_sockets_run_none_either_once_no_target_uses_a_driver(
    start_engine: Start,
) -> None:
    engine = start_engine()
    for_listeners = await prepare(engine, frozenset(DEFAULT_MODULES))
    assert attached() & OF_A_BUFFER
    let_drivers_rest(engine)
    engine.read()
    assert attached() & (OF_A_MESSAGE | OF_A_BUFFER) == for_listeners


@pytest.mark.parametrize("without", [(), NO_VARIABLES], ids=["variables", "programs"])
async def test_seven_programs_run_for_a_strangers_segment(
    start_engine: Start, pair: Pair, without: tuple[str, ...]
) -> None:
    for_listeners = await use(start_engine, frozenset(DEFAULT_MODULES), without)
    expected = OF_A_SEGMENT | for_listeners | (OF_A_SOFTIRQ if without else set())
    assert attached() - RARE - OF_A_BUFFER == expected
    client, server = pair
    with open_between(client, server) as both, counting_runs():
        before = run_times(without=())
        for _ in range(MESSAGES // 2):
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
            both.server.sendall(b"r" * 64)
            read_all(both.client, 64)
        after = run_times(without=())
    for tracepoint in expected - {"softirq_entry"} - OF_A_SOFTIRQ:  # one for several segments
        assert (after[tracepoint] - before[tracepoint]).runs >= MESSAGES, tracepoint


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
        assert ("sock_recv_length" in attached()) is udp
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
