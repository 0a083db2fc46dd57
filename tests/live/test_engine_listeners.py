"""acceptQueueOverflows: what listeners turned away, equal to the kernel's TcpExtListenOverflows."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.measurement import NOTHING
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.btf import KernelTypes
from latencyprobe_agent.kernel.build.counts import fault_of
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import (
    CLIENT,
    SERVER,
    are_bound_by_btf,
    read_listeners_at_once,
    watch,
)
from tests.live.netfilter import load_rules
from tests.live.pods import Namespace, Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    connect,
    everything_in,
    inside,
    listen,
    tcp_figures,
)

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
COUNTER = "acceptQueueOverflows"
MANY = 40
LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000), backlog=1)
print("ready", flush=True)
sys.stdin.read()
"""
HOLD_BARE_ACKS = """
table ip holding {
  chain output {
    type filter hook output priority 0;
    tcp dport 7000 tcp flags & (syn | ack | psh | fin | rst) == ack drop
  }
}
"""


def figure(namespace: Namespace, name: str) -> int:
    """One of the kernel's own counts of TCP."""
    return tcp_figures(namespace)[name]


async def until_figure(namespace: Namespace, name: str, least: int) -> None:
    """Wait until the kernel has counted so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while figure(namespace, name) < least:
            await asyncio.sleep(0.02)


async def assert_counts_equal_the_kernels(engine: KernelEngine, server: Pod) -> int:
    """The counter is the kernel's, read when that does not change; returns it."""
    counted = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            before = figure(server.namespace, "ListenOverflows")
            read_listeners_at_once(engine)
            counted += engine.read().get(SERVER, NOTHING).counters.get(COUNTER, 0)
            if before == figure(server.namespace, "ListenOverflows"):
                break
            await asyncio.sleep(0.02)
    assert counted == before
    return counted


def is_exact(engine: KernelEngine) -> bool:
    """Whether this kernel shows all that the counter needs: then the coverage has no gap."""
    return COUNTER not in {each.name for each in engine.coverage}


@contextmanager
def attempts(client: Pod, server: Pod, count: int) -> Iterator[list[socket.socket]]:
    """Connections that are being made, without waiting for any."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            with inside(client.namespace):
                asking = stack.enter_context(socket.socket())
            asking.setblocking(False)
            asking.connect_ex((server.address, PORT))
            made.append(asking)
        yield made


def send_syn(sending: socket.socket, source: str, target: str, port: int) -> None:
    """A SYN of no socket: the kernel answers its SYN-ACK by a reset, as some health checks do."""
    header = struct.pack("!HHIIHHHH", port, PORT, 1000, 0, 5 << 12 | 2, 64240, 0, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    total = sum(struct.unpack("!16H", ends + struct.pack("!HH", 6, len(header)) + header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    sending.sendto(header[:16] + struct.pack("!H", checksum) + header[18:], (target, 0))


@pytest.mark.every_kernel
async def test_listeners_are_read_on_every_kernel_whose_count_programs_can_find(
    start_engine: Start,
) -> None:
    engine = start_engine()
    await engine.use(frozenset({Module.TCP}), udp=False)
    assert engine._object is not None
    can_be_found = are_bound_by_btf(engine) and not fault_of(
        "LINUX_MIB_LISTENOVERFLOWS", KernelTypes()
    )
    assert is_exact(engine) is can_be_found
    assert (engine._object.attached.get("listener") == "iter/task_file") is can_be_found


@pytest.mark.every_kernel
async def test_acknowledgements_of_a_deferred_accept_are_no_overflows(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        for _ in range(MANY):
            with connect(client.namespace, server.address) as asking:
                asking.sendall(b"q")
                listener.accept()[0].close()
        assert figure(server.namespace, "TCPDeferAcceptDrop") >= MANY - 1
        if is_exact(engine):
            assert await assert_counts_equal_the_kernels(engine, server) == 0


@pytest.mark.every_kernel
async def test_health_checks_that_reset_a_handshake_are_no_overflows(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with inside(client.namespace):
        sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with listen(server.namespace, server.address), sending:
        for number in range(MANY):
            send_syn(sending, client.address, server.address, 20000 + number)
        await until_figure(server.namespace, "EmbryonicRsts", MANY)
        if is_exact(engine):
            assert await assert_counts_equal_the_kernels(engine, server) == 0


@pytest.mark.every_kernel
async def test_a_last_acknowledgement_that_finds_the_queue_full_counts_once(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    load_rules(client, HOLD_BARE_ACKS)
    with listen(server.namespace, server.address) as listener, attempts(client, server, 6):
        listener.listen(1)  # when all of them are half open
        client.namespace.execute("nft", "flush", "ruleset")
        # the SYN-ACKs are sent again, and acknowledged
        await until_figure(server.namespace, "ListenOverflows", 3)
        if is_exact(engine):
            assert await assert_counts_equal_the_kernels(engine, server) >= 3


@pytest.mark.every_kernel
@pytest.mark.parametrize("opened", ["before", "meanwhile"])
async def test_a_listener_that_accepts_nothing_has_its_overflows_without_a_further_connection(
    start_engine: Start, pair: Pair, opened: str
) -> None:
    client, server = pair
    server.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_syncookies=0")
    with ExitStack() as stack:
        if opened == "before":
            listener = stack.enter_context(listen(server.namespace, server.address))
            engine = await watch(start_engine, client, server)
        else:
            engine = await watch(start_engine, client, server)
            listener = stack.enter_context(listen(server.namespace, server.address))
        listener.listen(1)
        with attempts(client, server, MANY):
            await until_figure(server.namespace, "ListenOverflows", MANY)
        if is_exact(engine):
            assert await assert_counts_equal_the_kernels(engine, server) >= MANY
            # the rest found the queue of requests full
            assert figure(server.namespace, "ListenDrops") >= MANY


@contextmanager
def listening_process(pod: Pod) -> Iterator[int]:
    """A process with a listener of backlog 1 that never accepts; its id."""
    command = ("ip", "netns", "exec", pod.namespace.name, sys.executable, "-c", LISTEN)
    with subprocess.Popen(
        [*command, pod.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


async def test_the_listener_of_a_process_is_found_by_its_files(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    with listening_process(server) as pid:
        engine = start_engine()
        netns = frozenset({server.namespace.inode})
        engine.assign({SERVER: SlotSpec(tgids=frozenset({pid}), netns=netns)})
        await engine.use(frozenset({Module.TCP}))
        with attempts(client, server, MANY):
            await until_figure(server.namespace, "ListenOverflows", MANY)
        assert await assert_counts_equal_the_kernels(engine, server) >= MANY


async def test_without_btf_the_coverage_says_that_other_drops_are_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server, typed=False)
    (gap,) = (each for each in engine.coverage if each.name == COUNTER)
    assert gap.state is CoverageState.PARTIAL
    assert "with other packets that the listener dropped" in gap.reason


@pytest.mark.every_kernel
async def test_connections_that_a_listener_refused_are_counted_when_it_closes(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with listen(server.namespace, server.address) as listener:
        listener.listen(1)
        with attempts(client, server, MANY):
            await until_figure(server.namespace, "ListenOverflows", MANY)
    turned_away = figure(server.namespace, "ListenOverflows")
    if is_exact(engine):
        assert engine.read()[SERVER].counters[COUNTER] == turned_away


async def test_connections_that_were_refused_before_it_was_a_target_are_not_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    spec = {CLIENT: everything_in(client)}
    with listen(server.namespace, server.address) as listener:
        listener.listen(1)
        engine.assign(spec)
        with attempts(client, server, MANY):
            await until_figure(server.namespace, "ListenOverflows", MANY)
            read_listeners_at_once(engine)
            engine.read()
        before = figure(server.namespace, "ListenOverflows")
        read_listeners_at_once(engine)
        engine.assign({**spec, SERVER: everything_in(server)})
        assert before == figure(server.namespace, "ListenOverflows")
        read_listeners_at_once(engine)
        assert COUNTER not in engine.read().get(SERVER, NOTHING).counters


async def test_without_the_iterator_the_next_connection_has_the_drops_counted(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    server.namespace.execute("sysctl", "-qw", "net.ipv4.tcp_syncookies=0")
    engine = start_engine(without=["iter/task_file"])
    engine.assign({SERVER: everything_in(server)})
    await engine.use(frozenset({Module.RX, Module.TCP}))
    gap = {each.name: each for each in engine.coverage}.get(COUNTER)
    assert gap is not None
    if gap.state is CoverageState.UNAVAILABLE:
        pytest.skip("needs sk_data_ready")
    assert gap.state is CoverageState.PARTIAL
    assert gap.reason == (
        "counted when the next connection arrives, with other packets that the listener dropped: "
        "iter/task_file: excluded by request"
    )
    with listen(server.namespace, server.address) as listener:
        connect(client.namespace, server.address).close()  # the first shows the listener
        listener.accept()[0].close()
        listener.listen(1)
        with attempts(client, server, MANY):
            await until_figure(server.namespace, "ListenOverflows", MANY)
        drops = figure(server.namespace, "ListenDrops")
        for _ in range(2):
            listener.accept()[0].close()
        connect(client.namespace, server.address).close()
        listener.accept()[0].close()
        assert engine.read()[SERVER].counters[COUNTER] >= drops
