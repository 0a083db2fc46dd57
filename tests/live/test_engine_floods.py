"""Two targets share the kernel's tables: one makes very many entries, and the other loses none."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.patience import ANSWERS_OF_A_PAST, CONNECTS, MISSING_ANSWERS
from latencyprobe.domain.stages import OTHER_PLACES
from latencyprobe_agent.kernel.abi import MAX_PEERS, MAX_UNHEARD_PEERS, ROOMS, Room
from latencyprobe_agent.kernel.runtime import slot_rooms
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import watch, watch_on_host
from tests.live.node_drops import NODE_DROPS, are_missing
from tests.live.pods import Namespace, Pod, pods_on_bridge, pods_on_routes
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    Connection,
    connect,
    exchange,
    inside,
    listen,
    read_all,
    tcp_figures,
    udp_socket,
    waiting_bytes,
)
from tests.live.targets import until
from tests.patience import patient

Start = Callable[..., KernelEngine]
Three = tuple[Pod, Pod, Pod]
pytestmark = pytest.mark.timeout(patient(120))

FLOOD, OTHER = 0, 1  # the slots of `watch`
DNS_PORT, UNANSWERED_QUERIES = 53, "unansweredQueries"
# Twice as many as any table had for all targets.
VERY_MANY = 9000
READ_EACH = 3000  # closed sockets take memory until a reading counts those that are open
ASKED_BY_ONE = 4  # questions that a socket remembers: FEW_HANDOFFS, bpf/include/sockets.h
QUESTIONS, SEEN_LATE = 10, 2  # a reader may take a few before the kernel's event
# Of a resolver that asks again; longer than REPEAT_NS, bpf/modules/queries.bpf.c.
RESOLVERS_PATIENCE_S = 0.7
FEW = 5
DROP_QUERIES = NODE_DROPS.format(rule="udp dport 7000")
FLOOD_PORT = PORT + 1
# Every second SYN to PORT, the first one too, and all of the flood.
DROP_SYNS = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    tcp dport 7000 tcp flags syn numgen inc mod 2 == 0 counter drop
    tcp dport != 7000 tcp flags & (syn | ack) == syn counter drop
  }
}
"""
DROP_ACKS = NODE_DROPS.format(rule="tcp dport 7000-7001 tcp flags & syn == 0")
HALF_OPEN = 3000


class Figures:
    """All that an engine has measured of the other target."""

    def __init__(self, engine: KernelEngine) -> None:
        self._engine = engine
        self._total = NOTHING

    def read(self) -> Measurement:
        """All until now, with what is pending now."""
        self._total += self._engine.read().get(OTHER, NOTHING)
        return self._total


@pytest.fixture
def bridged_pods() -> Iterator[Three]:
    """Two targets and their peer, which is none."""
    with pods_on_bridge(3) as (_, (flooding, other, peer)):
        yield flooding, other, peer


@pytest.fixture
def routed_pods() -> Iterator[tuple[Namespace, Three]]:
    """The same, and the host that routes between them."""
    with pods_on_routes(3) as (host, (flooding, other, peer)):
        yield host, (flooding, other, peer)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def question(number: int) -> bytes:
    """A query of its own name, with an id."""
    return (number & 0xFFFF).to_bytes(2, "big") + b"\x01\x00question:%d" % number


async def until_resolvers_ask_again(asked: float) -> None:
    while time.monotonic() < asked + RESOLVERS_PATIENCE_S:
        await asyncio.sleep(0.05)


async def test_a_question_that_is_asked_again_is_the_same_while_another_target_asks_very_many(
    start_engine: Start, bridged_pods: Three
) -> None:
    flooding, other, peer = bridged_pods
    figures = Figures(await watch(start_engine, flooding, other))
    with udp_socket(peer.namespace, peer.address, DNS_PORT) as server:

        def ask(pod: Pod, *numbers: int) -> None:
            with udp_socket(pod.namespace) as asking:
                for number in numbers:
                    asking.sendto(question(number), (peer.address, DNS_PORT))
                    server.recv(512)

        ask(other, 1)
        asked = time.monotonic()
        for first in range(0, VERY_MANY, ASKED_BY_ONE):
            ask(flooding, *range(first, first + ASKED_BY_ONE))
            if not first % READ_EACH:
                figures.read()
        await until_resolvers_ask_again(asked)
        ask(other, 1)
    counters = figures.read().counters
    assert counters["dnsQueries"] == 1
    assert "dnsQueriesEnded" not in counters


async def test_a_peer_that_replied_is_known_while_another_target_has_very_many(
    start_engine: Start, bridged_pods: Three
) -> None:
    flooding, other, peer = bridged_pods
    figures = Figures(await watch(start_engine, flooding, other))

    def ask(asking: socket.socket, port: int) -> None:
        """Have one port of the peer reply."""
        with udp_socket(peer.namespace, peer.address, port) as server:
            asking.sendto(question(port), (peer.address, port))
            sent, sender = server.recvfrom(512)
            server.sendto(sent, sender)
            asking.recv(512)

    with udp_socket(other.namespace) as asking:
        ask(asking, PORT)
    until(lambda: figures.read().stage("udp.response").histogram.count == 1, "a reply is seen")
    with udp_socket(flooding.namespace) as asking:
        for port in range(10_000, 10_000 + VERY_MANY):
            ask(asking, port)
    with udp_socket(other.namespace) as asking:
        asking.sendto(question(2), (peer.address, PORT))
        found = figures.read().pending or {}
        assert found[UNANSWERED_QUERIES].count == 1


async def test_questions_that_a_target_holds_are_known_while_another_one_reads_very_many(
    start_engine: Start, bridged_pods: Three
) -> None:
    flooding, other, peer = bridged_pods
    figures = Figures(await watch(start_engine, flooding, other))
    with (
        udp_socket(peer.namespace) as asking,
        udp_socket(flooding.namespace, flooding.address, PORT) as flooded,
        udp_socket(other.namespace, other.address, PORT) as serving,
    ):

        def hold(server: socket.socket, number: int) -> None:
            asking.sendto(question(number), server.getsockname())
            server.recv(512)

        for number in range(QUESTIONS):
            hold(serving, number)
        for number in range(VERY_MANY):
            hold(flooded, number)
        for number in range(QUESTIONS):
            serving.sendto(question(number), (peer.address, asking.getsockname()[1]))
        answers = figures.read().stage("app.response").histogram
    assert QUESTIONS - SEEN_LATE <= answers.count <= QUESTIONS


def begin_to_connect(pod: Pod, address: str, port: int) -> socket.socket:
    """A socket whose SYN was just sent."""
    with inside(pod.namespace):
        made = socket.socket()
    made.setblocking(False)
    made.connect_ex((address, port))
    return made


async def test_a_drop_is_joined_to_its_retransmission_while_another_target_has_very_many_drops(
    start_engine: Start, routed_pods: tuple[Namespace, Three]
) -> None:
    host, (flooding, other, peer) = routed_pods
    engine = await watch_on_host(start_engine, host, flooding, other)
    host.load_rules(DROP_SYNS)
    with (
        listen(peer.namespace, peer.address) as listener,
        begin_to_connect(other, peer.address, PORT),
    ):
        for _ in range(VERY_MANY // 3):  # within the second until it sends its SYN again
            begin_to_connect(flooding, peer.address, FLOOD_PORT).close()
        listener.accept()[0].close()
        figures = Figures(engine).read()
    assert figures.counters["connectRetransmits"] == 1
    if are_missing(engine):
        return
    assert figures.counters["drops.NETFILTER_DROP"] == 1
    assert figures.counters["droppedAndResent"] == 1
    assert figures.counters["droppedAndResentNs"] >= 10**9


@pytest.mark.usefixtures("many_files")
async def test_a_handshake_is_joined_to_its_first_syn_ack_while_another_target_has_very_many(
    start_engine: Start, routed_pods: tuple[Namespace, Three]
) -> None:
    host, (flooding, other, peer) = routed_pods
    engine = await watch_on_host(start_engine, host, flooding, other)
    figures = Figures(engine)
    host.load_rules(DROP_ACKS)
    with ExitStack() as stack:
        with inside(flooding.namespace):
            flooded = socket.create_server((flooding.address, FLOOD_PORT), backlog=HALF_OPEN)
        stack.enter_context(flooded)
        listener = stack.enter_context(listen(other.namespace, other.address))
        asking = stack.enter_context(begin_to_connect(peer, other.address, PORT))
        for _ in range(HALF_OPEN):
            stack.enter_context(begin_to_connect(peer, flooding.address, FLOOD_PORT))

        def sent_again(pod: Pod) -> int:
            return tcp_figures(pod.namespace)["TCPSynRetrans"]

        until(lambda: sent_again(other) and sent_again(flooding) >= HALF_OPEN, "second SYN-ACKs")
        host.execute("nft", "flush", "ruleset")
        asking.sendall(b"q")
        serving = stack.enter_context(listener.accept()[0])
        read_all(serving, 1)
        serving.sendall(b"r")
        until(lambda: waiting_bytes(asking), "the answer")  # and its ACK has left
        asking.sendall(b"q")
        read_all(serving, 1)
        measured = figures.read()
    recovery = measured.stage("tcp.recovery")
    assert measured.counters["handshakeRetransmits"] == 1
    assert (recovery.histogram.count, recovery.unmatched) == (1, 0)
    assert recovery.histogram.min_ns >= 10**9


async def test_places_that_drop_packets_of_one_target_leave_room_for_that_of_another_one(
    start_engine: Start, routed_pods: tuple[Namespace, Three], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_rooms, "ROOMS", {**ROOMS, Room.DROP_PLACES: 2})  # one for each
    host, (flooding, other, peer) = routed_pods
    engine = await watch_on_host(start_engine, host, flooding, other)
    host.load_rules(DROP_QUERIES)
    with udp_socket(flooding.namespace) as first, udp_socket(other.namespace) as second:
        first.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        first.sendto(b"query", (peer.address, PORT))
        first.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        for sending in (first, second):
            sending.sendto(b"query", (peer.address, PORT))
    measured = engine.read()
    of_flood, of_other = (
        {name: n for name, n in measured[slot].counters.items() if name.startswith("dropsIn.")}
        for slot in (FLOOD, OTHER)
    )
    assert of_flood.pop(OTHER_PLACES) == 1
    assert sorted(of_flood.values()) == [1]
    assert OTHER_PLACES not in of_other
    assert sorted(of_other.values()) == [1]


@contextmanager
def connections(
    client: Pod, server: Pod, ports: range, each: int = 1
) -> Iterator[list[Connection]]:
    """Open connections, so many to each port."""
    with ExitStack() as stack:
        made = []
        for port in ports:
            with listen(server.namespace, server.address, port) as listener:
                for _ in range(each):
                    asking = stack.enter_context(connect(client.namespace, server.address, port))
                    answering = stack.enter_context(listener.accept()[0])
                    answering.settimeout(PATIENCE_SECONDS)
                    made.append(Connection(asking, answering))
        yield made


def judged(measured: Measurement) -> int:
    found = (measured.pending or {}).get(MISSING_ANSWERS)
    return found.count if found is not None else 0


@pytest.mark.usefixtures("many_files")
async def test_a_target_with_very_many_peers_leaves_room_for_those_of_another_one(
    start_engine: Start, bridged_pods: Three
) -> None:
    """First requests are late by the past of another connection to the same peer."""
    flooding, other, peer = bridged_pods
    engine = await watch(start_engine, flooding, other)
    figures = Figures(engine)
    many = range(20_000, 20_000 + 2 * MAX_PEERS)
    few = range(PORT, PORT + FEW)
    with (
        connections(flooding, peer, many) as crowd,
        connections(other, peer, few, each=2) as pairs,
    ):
        for both in (*crowd, *pairs[::2]):
            exchange(both, ANSWERS_OF_A_PAST)
        for both in pairs[1::2]:
            both.client.sendall(b"q" * 64)
            read_all(both.server, 64)
        until(lambda: judged(figures.read()) == FEW, "late requests to all peers of the other one")
        assert engine.lost_parts.keys() == {FLOOD}
        (lost,) = engine.lost_parts[FLOOD]
        assert f"its part of {MAX_PEERS}" in lost.reason
        read = engine.read()
    assert {str(each.address) for each in read[OTHER].peers} == {
        f"{peer.address}:{port}" for port in few
    }


@pytest.mark.usefixtures("many_files")
async def test_connects_to_very_many_addresses_leave_the_peers_that_another_target_waits_for(
    start_engine: Start, routed_pods: tuple[Namespace, Three]
) -> None:
    host, (flooding, other, peer) = routed_pods
    engine = await watch_on_host(start_engine, host, flooding, other)
    host.load_rules(DROP_SYNS)
    many = range(20_000, 20_000 + 8 * MAX_UNHEARD_PEERS)
    few = range(30_000, 30_000 + FEW)
    wanted = {f"{peer.address}:{port}" for port in few}
    with ExitStack() as stack:
        for pod, ports in ((flooding, many), (other, few)):
            for port in ports:
                stack.enter_context(begin_to_connect(pod, peer.address, port))

        def waited_for() -> set[str]:
            found = engine.read().get(OTHER, NOTHING).peers
            return {str(each.address) for each in found if each.kind == CONNECTS}

        until(lambda: waited_for() == wanted, "all peers of the other one")
        assert OTHER not in engine.lost_parts
