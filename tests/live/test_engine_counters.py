"""What happens to a target's sockets and has no duration, against the kernel's own counts."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import CLIENT, SERVER, read_listeners_at_once, watch
from tests.live.netfilter import load_rules, send_what_netfilter_drops
from tests.live.pods import Namespace, Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    connect,
    everything_in,
    inside,
    listen,
    open_between,
    read_all,
    receive_memory,
    send_unread,
    udp_socket,
    wait_for_bytes,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER

DROP_DATA = """
table inet lossy {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 tcp flags & psh == psh drop
  }
}
"""


def kernel_counts(namespace: Namespace) -> dict[str, int]:
    """What the kernel has counted in a namespace: TcpExt's, Tcp's and Udp's."""
    with inside(namespace):
        files = [Path(f"/proc/thread-self/net/{name}") for name in ("netstat", "snmp")]
        lines = [line.split() for file in files for line in file.read_text().splitlines()]
    counts: dict[str, int] = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        counts |= {
            names[0].rstrip(":") + name: int(value)
            for name, value in zip(names[1:], values[1:], strict=True)
        }
    return counts


def until_counted(namespace: Namespace, name: str, least: int) -> dict[str, int]:
    """Wait until the kernel has counted so many of this kind."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (counts := kernel_counts(namespace))[name] < least:
        assert time.monotonic() < deadline, f"{name} is {counts[name]}, {least} were expected"
        time.sleep(0.01)
    return counts


def counters(engine: KernelEngine) -> tuple[dict[str, int], dict[str, int]]:
    """The counters of client and server."""
    measured = engine.read()
    client, server = (measured.get(slot, NOTHING).counters for slot in (CLIENT, SERVER))
    return dict(client), dict(server)


def by_reason(counted: dict[str, int]) -> dict[str, int]:
    """Without the kernel functions that dropped packets: these differ between kernels."""
    return {name: n for name, n in counted.items() if not name.startswith("dropsIn.")}


def counters_until(engine: KernelEngine, name: str, count: int) -> dict[str, int]:
    """The client's counters, once this one has come so far.

    A segment may arrive before the sender's program has told of its departure.
    """
    total = NOTHING
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (counted := total.counters).get(name, 0) < count:
        assert time.monotonic() < deadline, f"{count} {name} were expected, counted: {counted}"
        total += engine.read().get(CLIENT, NOTHING)
        time.sleep(0.01)
    return dict(counted)


@pytest.mark.every_kernel
async def test_expiries_of_the_retransmission_timer_are_the_kernels(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with open_between(client, server) as both:
        both.client.sendall(b"x")
        read_all(both.server, 1)
        load_rules(server, DROP_DATA)
        both.client.sendall(b"x")
        # sent, a tail loss probe, and again whenever the timer expires
        until_counted(client.namespace, "TcpRetransSegs", 4)
        server.namespace.execute("nft", "flush", "ruleset")
        read_all(both.server, 1)
        kernel = kernel_counts(client.namespace)
    sent_again = kernel["TcpRetransSegs"]
    time_outs = sent_again - kernel["TcpExtTCPLossProbes"]
    asking = counters_until(engine, "retransmits", min(counts_of(sent_again)))
    assert time_outs >= 3
    assert asking["retransmits"] in counts_of(sent_again)
    assert asking["rtos"] in counts_of(time_outs)


async def test_packets_sent_again_without_a_time_out_are_no_expiries(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    drop_some = DROP_DATA.replace("drop", "numgen inc mod 20 == 10 drop")
    with open_between(client, server) as both:
        load_rules(server, drop_some)
        for _ in range(200):
            both.client.sendall(b"x" * 100)
        read_all(both.server, 200 * 100)
        kernel = kernel_counts(client.namespace)
    sent_again = kernel["TcpRetransSegs"]
    asking = counters_until(engine, "retransmits", min(counts_of(sent_again)))
    assert sent_again >= 5
    assert asking["retransmits"] in counts_of(sent_again)
    assert asking.get("rtos", 0) <= kernel["TcpExtTCPTimeouts"]


@pytest.mark.every_kernel
async def test_resets_are_counted_at_both_ends(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        for number in range(10):
            asking = connect(client.namespace, server.address)
            answering, _ = listener.accept()
            with asking, answering:
                if number % 2:  # close() with a reset, or with unread data
                    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                else:
                    answering.sendall(b"unread")
                    wait_for_bytes(asking, 6)
                asking.close()
                with suppress(ConnectionResetError):
                    answering.recv(1)
    sent, received = counters(engine)
    assert sent["resetsSent"] == kernel_counts(client.namespace)["TcpOutRsts"] == 10
    assert received["resetsReceived"] == 10
    assert "resetsReceived" not in sent
    assert "resetsSent" not in received


@pytest.mark.every_kernel
async def test_windows_that_close_are_counted_at_both_ends(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    amount = 4 << 20
    with open_between(client, server) as both:
        both.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sending = threading.Thread(target=both.client.sendall, args=(bytes(amount),))
        sending.start()
        for number in range(1, 11):
            until_counted(server.namespace, "TcpExtTCPToZeroWindowAdv", number)
            read_all(both.server, 1 << 18)
        read_all(both.server, amount - 10 * (1 << 18))
        sending.join()
        kernel = kernel_counts(server.namespace)
    asking, answering = counters(engine)
    assert answering["zeroWindowsSent"] == kernel["TcpExtTCPToZeroWindowAdv"] >= 10
    # A timer's probe of the window is answered, too.
    assert asking["zeroWindowsReceived"] in counts_of(answering["zeroWindowsSent"])


def gap(engine: KernelEngine, counter: str) -> CoverageState | None:
    """How far this kernel can't tell of a counter; None: it can."""
    return {each.name: each.state for each in engine.coverage}.get(counter)


@pytest.mark.every_kernel
async def test_connections_that_a_full_accept_queue_turns_away_are_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    server.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_syncookies=0")
    with listen(server.namespace, server.address) as listener, ExitStack() as stack:
        listener.listen(1)
        for _ in range(6):
            with inside(client.namespace):
                asking = stack.enter_context(socket.socket())
            asking.setblocking(False)
            asking.connect_ex((server.address, PORT))
        until_counted(server.namespace, "TcpExtListenOverflows", 8)  # they try again
        stack.close()
        for _ in range(2):
            listener.accept()[0].close()
        # a connection that finds room tells of those before it
        connect(client.namespace, server.address).close()
        kernel = kernel_counts(server.namespace)
        read_listeners_at_once(engine)
        _, answering = counters(engine)
    if gap(engine, "acceptQueueOverflows") is CoverageState.UNAVAILABLE:
        assert "acceptQueueOverflows" not in answering
        return
    assert answering["acceptQueueOverflows"] == kernel["TcpExtListenOverflows"] >= 8
    assert answering["acceptQueueOverflows"] == kernel["TcpExtListenDrops"]


@pytest.mark.every_kernel
async def test_datagrams_that_find_no_room_are_counted_by_reason(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(server.namespace, server.address, PORT) as reading,
        udp_socket(client.namespace) as sending,
    ):
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        send_unread(sending, reading, b"d" * 100, 300)
        _, dropped = receive_memory(reading)
    asking, answering = counters(engine)
    assert dropped > 100
    reasons = {} if gap(engine, "drops") else {"drops.SOCKET_RCVBUFF": dropped}
    assert by_reason(answering) == {"receiveQueueOverflows": dropped, **reasons}
    assert asking == {}


@pytest.mark.every_kernel
async def test_packets_that_a_firewall_drops_on_output_are_counted_by_reason(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    send_what_netfilter_drops(client, server, 7)
    asking, answering = counters(engine)
    untold = gap(engine, "drops") is CoverageState.UNAVAILABLE
    assert by_reason(asking) == ({} if untold else {"drops.NETFILTER_DROP": 7})
    assert answering == {}


async def test_strangers_drops_are_nobodys(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({SERVER: everything_in(server)})
    await engine.use(frozenset({Module.TCP}))
    send_what_netfilter_drops(client, server, 7)
    assert engine.read() == {}


async def test_ordinary_traffic_drops_nothing(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        for _ in range(200):
            with connect(client.namespace, server.address) as asking:
                answering, _ = listener.accept()
                with answering:
                    asking.sendall(b"q" * 64)
                    read_all(answering, 64)
                    answering.sendall(b"r" * 64)
                    read_all(asking, 64)
    # After a halt of the machine, TCP waits to send, or sends again.
    harmless = ("delayedAck", "rtt", "sendsHeldBack", "heldBackNs", "connectCalls", "connectsSent")
    again = ("retransmits", "rtos", "spurious", "connectRetransmits", "handshakeRetransmits")
    for counted in counters(engine):
        assert not [name for name in counted if not name.startswith(harmless + again)], counted
