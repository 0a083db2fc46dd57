"""Queries by datagrams: the wait for a reply, against the client's own clock."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.verdict import judge
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, account_for, count, watch
from tests.live.netfilter import load_rules
from tests.live.pods import Pod
from tests.live.resolving import TYPE_A, TYPE_AAAA, look_up, name_server
from tests.live.sockets import PATIENCE_SECONDS, PORT, family_of, udp_socket
from tests.live.targets import until
from tests.live.truth import BUCKET

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
STAGE, PENDING_KIND = "udp.response", "unansweredQueries"
ANSWERS = "app.response"
QUERIES = 20
FEW = 2  # that a reader takes before the kernel's event
LATE_S = 0.020
# Of a resolver that asks again; longer than REPEAT_NS, bpf/modules/queries.bpf.c.
RESOLVERS_PATIENCE_S = 0.7
REPETITIONS_CLOCK_NS = 1 << 24  # SENT_SHIFT, in the same file
# Longer than LATE_REPLY_NS, in the same file.
GIVEN_UP_S = 1.1
LONG_S = 1.2
NS = 10**9
NAMES = 5
DNS_PORT = 53
SERVICE_OF_DNS = """
table ip services {{
  chain output {{
    type nat hook output priority -100;
    ip daddr {service} udp dport 53 dnat to {server}
  }}
}}
"""


def query(number: int, name: bytes = b"name.example") -> bytes:
    """A query with an id, and a question."""
    return number.to_bytes(2, "big") + b"\x01\x00" + b"question:" + name


class Peers:
    """A client's socket and a server's."""

    def __init__(self, client: Pod, server: Pod, port: int = PORT) -> None:
        self._client, self._address = client, (server.address, port)
        self.server = udp_socket(server.namespace, server.address, port)
        self.server.settimeout(PATIENCE_SECONDS)
        self.client = self.new_client()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def new_client(self) -> socket.socket:
        """Another socket of the client."""
        made = udp_socket(self._client.namespace)
        made.connect(self._address)
        made.settimeout(PATIENCE_SECONDS)
        return made

    def take(self) -> tuple[str, int]:
        """The server's next datagram; who sent it."""
        _, sender = self.server.recvfrom(4096)
        address, port, *_ = sender
        return address, port

    def hold(self, questions: Iterable[bytes]) -> tuple[str, int]:
        """Have the server take questions without an answer; who sent them."""
        senders = set()
        for question in questions:
            self.client.send(question)
            senders.add(self.take())
        (sender,) = senders
        return sender

    def exchange(self, sent: bytes, reply: bytes) -> int:
        """Have the server answer one datagram; how long the client waited, in ns."""
        begun = time.monotonic_ns()
        self.client.send(sent)
        self.server.sendto(reply, self.take())
        self.client.recv(4096)
        return time.monotonic_ns() - begun

    def wait_in_vain(self) -> None:
        """The client waits for a reply, as long as a resolver does."""
        self.client.settimeout(RESOLVERS_PATIENCE_S)
        with suppress(TimeoutError):
            self.client.recv(4096)
            raise AssertionError("there is a reply")
        self.client.settimeout(PATIENCE_SECONDS)

    def answer_late(self, sent: bytes, reply: bytes, late_s: float) -> int:
        """Have the server think before it answers; how long it held the datagram, in ns."""
        self.client.send(sent)
        sender = self.take()
        read_ns = time.monotonic_ns()
        time.sleep(late_s)
        self.server.sendto(reply, sender)
        answered_ns = time.monotonic_ns()
        self.client.recv(4096)
        return answered_ns - read_ns


class OfClient:
    """What an engine measures at the client. A reader may be faster than the kernel's event."""

    def __init__(self, engine: KernelEngine) -> None:
        self._engine = engine
        self._total = NOTHING

    def read(self) -> Measurement:
        """All until now."""
        self._total += self._engine.read().get(CLIENT, NOTHING)
        return self._total

    @property
    def pending(self) -> Mapping[str, Pending]:
        """What has no reply now."""
        return self.read().pending or {}

    def waits(self) -> Histogram:
        """The waits for replies until now."""
        return self.read().stage(STAGE).histogram

    def until_replied(self, count: int) -> Histogram:
        """The waits for so many replies, or for more."""
        until(lambda: self.waits().count >= count, f"{count} replies are seen")
        return self.waits()

    def until_dns(self, asked: int, ended: int) -> None:
        """Wait until so many queries to port 53 are seen, and so many of them have ended."""
        until(lambda: dns(self.read()) == (asked, ended), f"{ended} of {asked} have ended")

    def until_pending(self, count: int) -> None:
        """Wait until so many queries are without a reply."""
        nothing = Pending(0)
        until(
            lambda: self.pending.get(PENDING_KIND, nothing).count == count,
            f"{count} queries are without a reply",
        )


def dns(measured: Measurement) -> tuple[int, int]:
    """The queries to port 53, and those that have ended."""
    return (
        measured.counters.get("dnsQueries", 0),
        measured.counters.get("dnsQueriesEnded", 0),
    )


def is_measured(engine: KernelEngine) -> bool:
    """Whether this kernel shows queries; else the coverage says why."""
    (row,) = (each for each in engine.coverage if each.name == STAGE)
    if row.state is CoverageState.ACTIVE:
        return True
    assert row.state is CoverageState.UNAVAILABLE
    assert row.reason
    return False


@pytest.mark.every_kernel
async def test_each_query_with_a_reply_is_a_sample_of_the_clients_alone(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        waited = [peers.exchange(query(number), query(number)) for number in range(QUERIES)]
    if not is_measured(engine):
        assert not OfClient(engine).waits().count
        return
    read = engine.read()
    of_server = account_for(read.get(SERVER, NOTHING), STAGE)
    measured = read.get(CLIENT, NOTHING).stage(STAGE).histogram
    if measured.count < QUERIES:
        measured += OfClient(engine).until_replied(QUERIES - measured.count)
    assert measured.count == QUERIES
    assert measured.sum_ns <= sum(waited)
    assert of_server == (0, 0)


async def test_without_btf_the_coverage_says_that_queries_are_not_measured(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair, typed=False)
    with Peers(*pair) as peers:
        peers.exchange(query(1), query(1))
    assert not is_measured(engine)
    assert not OfClient(engine).waits().count


async def test_replies_without_an_id_end_the_oldest_query(start_engine: Start, pair: Pair) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        waited = [peers.exchange(b"question", b"reply") for _ in range(QUERIES)]
    measured = OfClient(engine).until_replied(QUERIES)
    assert measured.count == QUERIES
    assert measured.sum_ns <= sum(waited)


async def test_replies_in_another_order_end_their_own_queries(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        for number in range(3):
            peers.client.send(query(number, b"name %d" % number))
        sender, *_ = [peers.take() for _ in range(3)]
        for number in (2, 0, 1):
            peers.server.sendto(query(number), sender)
            peers.client.recv(4096)
        seen = OfClient(engine)
        seen.until_replied(3)
        assert account_for(seen.read(), STAGE) == (3, 0)


async def test_a_query_sent_again_has_waited_since_the_first_time(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        peers.exchange(query(0), query(0))
        peers.client.send(query(1))
        peers.take()
        sent_ns = time.monotonic_ns()
        peers.wait_in_vain()
        again_ns = time.monotonic_ns()
        peers.exchange(query(1), query(1))
    measured = OfClient(engine).until_replied(2)
    assert measured.count == 2
    assert measured.max_ns >= again_ns - sent_ns


@pytest.mark.every_kernel
@pytest.mark.parametrize("kind", ["second", "late"])
async def test_a_reply_that_no_reader_waits_for_is_no_wait(
    start_engine: Start, pair: Pair, kind: str
) -> None:
    """It is read when the socket is used again: the second one, or one after the time-out."""
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        if kind == "second":
            peers.client.send(query(1))
            peers.exchange(query(1), query(1))
        else:
            peers.client.send(query(1))
            await asyncio.sleep(GIVEN_UP_S)
        peers.server.sendto(query(1), peers.take())
        await asyncio.sleep(LONG_S)
        peers.exchange(query(2), query(2))
        peers.client.recv(4096)
    if not is_measured(engine):
        return
    measured = OfClient(engine).read()
    assert judge(measured).bottleneck is not Bottleneck.SLOW_READER
    assert measured.stage("rx.socket").histogram.max_ns < LONG_S * NS
    assert measured.counters["spareReplies"] == 1


@pytest.mark.every_kernel
@pytest.mark.parametrize("answered_after_s", [0.0, GIVEN_UP_S])
async def test_a_client_that_reads_its_replies_late_is_a_slow_reader(
    start_engine: Start, pair: Pair, answered_after_s: float
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        for number in range(2):
            peers.client.send(query(number))
            asking = peers.take()
            await asyncio.sleep(answered_after_s)
            peers.server.sendto(query(number), asking)
            await asyncio.sleep(LONG_S)
            peers.client.recv(4096)
    measured = OfClient(engine).read()
    assert measured.stage("rx.socket").histogram.min_ns >= LONG_S * NS
    assert account_for(measured, "rx.socket") == (2, 0)
    assert "spareReplies" not in measured.counters


@pytest.mark.every_kernel
async def test_datagrams_of_a_tunnel_are_no_spare_replies(start_engine: Start, pair: Pair) -> None:
    """All of its datagrams begin with the same bytes, such as those of WireGuard."""
    engine = await watch(start_engine, *pair)
    received = 20
    with Peers(*pair) as peers:
        for number in range(4):
            peers.client.send(query(4, b"%d" % number))
        asking, *_ = [peers.take() for _ in range(4)]
        for number in range(received):
            peers.server.sendto(query(4, b"%d" % number), asking)
            peers.client.recv(4096)
    measured = OfClient(engine).read()
    assert account_for(measured, "rx.socket") == (received, 0)
    assert "spareReplies" not in measured.counters


@pytest.mark.parametrize("number", [1, 2])
async def test_a_query_sent_again_by_another_socket_has_waited_since_the_first_time(
    start_engine: Start, pair: Pair, number: int
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        peers.exchange(query(0), query(0))
        peers.client.send(query(1))
        peers.take()
        sent_ns = time.monotonic_ns()
        peers.wait_in_vain()
        again_ns = time.monotonic_ns()
        peers.client.close()
        peers.client = peers.new_client()
        peers.exchange(query(number), query(number))
    measured = OfClient(engine).until_replied(2)
    assert measured.count == 2
    assert measured.max_ns >= again_ns - sent_ns


async def test_one_of_two_queries_without_a_reply_is_pending_and_waits_until_it_has_one(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    seen = OfClient(engine)
    with Peers(*pair) as peers:
        peers.exchange(query(0), query(0))
        peers.client.send(query(1, b"of IPv4"))
        peers.client.send(query(2, b"of IPv6"))
        sent_ns = time.monotonic_ns()
        peers.server.sendto(query(1), peers.take())
        peers.take()
        peers.client.recv(4096)
        peers.wait_in_vain()
        again_ns = time.monotonic_ns()
        found = seen.pending[PENDING_KIND]
        peers.exchange(query(2, b"of IPv6"), query(2))
        seen.until_pending(0)
    assert (found.count, found.sockets) == (1, 1)
    assert found.oldest_ns >= again_ns - sent_ns
    assert seen.until_replied(3).count == 3
    assert seen.waits().max_ns >= again_ns - sent_ns


@pytest.mark.parametrize("version", [4, 6])
async def test_a_socket_that_is_not_connected_knows_its_peers_apart(
    start_engine: Start, pair: Pair, version: int
) -> None:
    client, server = pair
    address = server.address if version == 4 else server.address6
    seen = OfClient(await watch(start_engine, client, server))
    with (
        udp_socket(server.namespace, address, PORT) as first,
        udp_socket(server.namespace, address, PORT + 1) as second,
        udp_socket(client.namespace, family=family_of(address)) as asking,
    ):
        for serving in (first, second):  # both are known to reply
            asking.sendto(b"first", serving.getsockname())
            serving.sendto(b"reply", serving.recvfrom(4096)[1])
            asking.recv(4096)
            seen.until_pending(0)
        asking.sendto(b"first", first.getsockname())
        asking.sendto(b"second", second.getsockname())
        sender = first.recvfrom(4096)[1]
        second.recv(4096)
        seen.until_pending(2)
        first.sendto(b"reply", sender)
        asking.recv(4096)
        seen.until_pending(1)
        second.sendto(b"reply", sender)
        asking.recv(4096)
        seen.until_pending(0)


async def test_queries_to_a_peer_that_replied_to_another_socket_are_pending(
    start_engine: Start, pair: Pair
) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair) as peers, peers.new_client() as other:
        peers.exchange(query(0), query(0))
        seen.until_replied(1)
        other.send(query(1))
        peers.take()
        seen.until_pending(1)


async def test_a_query_of_dns_is_pending_even_if_there_never_was_a_reply(
    start_engine: Start, pair: Pair
) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=DNS_PORT) as peers:
        peers.client.send(query(0))
        peers.take()
        seen.until_pending(1)


@pytest.mark.parametrize(("port", "share"), [(DNS_PORT, 1), (PORT, 0)])
async def test_the_time_of_replies_from_name_servers_is_known_apart(
    start_engine: Start, pair: Pair, port: int, share: int
) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=port) as peers:
        for number in range(QUERIES):
            peers.exchange(query(number), query(number))
        waits = seen.until_replied(QUERIES)
    assert seen.read().counters.get("dnsResponseNs", 0) == share * waits.sum_ns


async def test_queries_of_closed_sockets_that_had_no_reply_are_counted(
    start_engine: Start, pair: Pair
) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=DNS_PORT) as peers:
        for number in range(QUERIES):
            with peers.new_client() as client:
                client.send(query(number, b"name-%d.example" % number))
                sender = peers.take()
                if number % 2:
                    peers.server.sendto(query(number), sender)
                    seen.until_dns(number + 1, (number + 1) // 2)
    assert dns(seen.read()) == (QUERIES, QUERIES // 2)


async def test_a_query_of_dns_sent_again_is_the_same(start_engine: Start, pair: Pair) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=DNS_PORT) as peers, peers.new_client() as another:
        for client in (peers.client, peers.client, another):
            client.send(query(7))
            peers.take()
            peers.wait_in_vain()
    assert dns(seen.read()) == (1, 0)
    assert seen.read().counters["dnsQueriesRepeated"] == 1


async def test_a_question_that_its_socket_asks_again_has_been_waited_for(
    start_engine: Start, pair: Pair
) -> None:
    """The C library asks for A and AAAA by one socket, and the server never replies to AAAA."""
    seen = OfClient(await watch(start_engine, *pair))
    least_ns = most_ns = 0
    with Peers(*pair, port=DNS_PORT) as peers:
        for number in range(NAMES):
            of_a, of_aaaa = (query(2 * number + n, b"name-%d" % (2 * number + n)) for n in (0, 1))
            peers.client.close()
            peers.client = peers.new_client()
            peers.exchange(of_a, of_a)
            sent: list[tuple[int, int]] = []
            for _ in range(3):
                begun_ns = time.monotonic_ns()
                peers.client.send(of_aaaa)
                sent.append((begun_ns, time.monotonic_ns()))
                peers.take()
                peers.wait_in_vain()
            least_ns += sent[-1][0] - sent[0][1] - REPETITIONS_CLOCK_NS
            most_ns += sent[-1][1] - sent[0][0] + REPETITIONS_CLOCK_NS
    measured = seen.read()
    assert measured.counters["dnsQueriesRepeated"] == NAMES
    assert least_ns <= measured.counters["dnsQueriesRepeatedNs"] <= most_ns
    verdict = judge(measured)
    assert verdict.waiting_ns["DNS"] >= measured.counters["dnsQueriesRepeatedNs"]


async def test_one_of_two_name_servers_that_are_asked_at_once_may_not_reply(
    start_engine: Start, pair: Pair
) -> None:
    """The resolver of musl closes its socket after the first reply."""
    client, server = pair
    seen = OfClient(await watch(start_engine, *pair))
    with (
        Peers(*pair, port=DNS_PORT) as peers,
        udp_socket(client.namespace, client.address, DNS_PORT) as silent,
    ):
        for number in range(QUERIES):
            with udp_socket(client.namespace) as asking:
                question = query(number, b"name-%d.example" % number)
                for address in (client.address, server.address):
                    asking.sendto(question, (address, DNS_PORT))
                peers.server.sendto(question, peers.take())
                silent.recv(4096)
                asking.recv(4096)
    seen.until_dns(QUERIES, QUERIES)


async def test_servers_that_are_asked_at_once_are_not_judged_though_none_replies(
    start_engine: Start, pair: Pair
) -> None:
    """Whoever asks both again may not have waited for either."""
    client, server = pair
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=DNS_PORT) as peers:
        for number in range(NAMES):
            question = query(number, b"name-%d.example" % number)
            with udp_socket(client.namespace) as asking:
                for _ in range(2):
                    for address in (client.address, server.address):
                        asking.sendto(question, (address, DNS_PORT))
                    peers.take()
                    peers.wait_in_vain()
    measured = seen.read()
    assert measured.counters["dnsQueries"] == measured.counters["dnsQueriesEnded"] == NAMES
    assert "dnsQueriesRepeated" not in measured.counters


async def test_a_service_of_dns_replies_by_its_own_address(start_engine: Start, pair: Pair) -> None:
    """The sender's own netfilter translates queries to the server, and its replies back."""
    client, server = pair
    service = "203.0.113.53"
    load_rules(client, SERVICE_OF_DNS.format(service=service, server=server.address))
    client.namespace.execute("ip", "route", "add", service, "via", server.address)
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair, port=DNS_PORT) as peers:
        with udp_socket(client.namespace) as asking:
            asking.connect((service, DNS_PORT))
            for number in range(QUERIES):
                asking.send(query(number))
                peers.server.sendto(query(number), peers.take())
                seen.until_dns(number + 1, number + 1)
                asking.recv(4096)
        assert count(seen.read(), STAGE) == QUERIES


async def test_queries_to_other_ports_are_not_those_of_dns(start_engine: Start, pair: Pair) -> None:
    seen = OfClient(await watch(start_engine, *pair))
    with Peers(*pair) as peers:
        peers.exchange(query(0), query(0))
        seen.until_replied(1)
    assert dns(seen.read()) == (0, 0)


async def test_a_stream_without_replies_has_no_queries(start_engine: Start, pair: Pair) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        for number in range(100):
            peers.client.send(b"metric:%d|c" % number)
            peers.take()
        read = OfClient(engine).read()
    assert PENDING_KIND not in (read.pending or {})
    assert account_for(read, STAGE) == (0, 0)


async def test_a_server_on_its_port_asks_nothing(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with (
        udp_socket(client.namespace, client.address, PORT) as serving,
        udp_socket(server.namespace, server.address, PORT) as asking,
    ):
        # what it sends first may be a reply to a query from before
        serving.sendto(query(0), (server.address, PORT))
        asking.recv(4096)
        for number in range(1, QUERIES):
            asking.sendto(query(number), (client.address, PORT))
            _, sender = serving.recvfrom(4096)
            serving.sendto(query(number), sender)
            asking.recv(4096)
        read = OfClient(engine).read()
    assert PENDING_KIND not in (read.pending or {})
    assert not read.stage(STAGE).histogram.count


async def test_the_time_in_which_a_server_holds_questions_is_app_response(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        held_ns = [
            peers.answer_late(query(number), query(number), LATE_S) for number in range(QUERIES)
        ]
        measured = engine.read()
    answers = measured[SERVER].stage(ANSWERS).histogram
    assert QUERIES - FEW <= answers.count <= QUERIES
    assert answers.min_ns > LATE_S * 1e9 / BUCKET
    assert answers.sum_ns < sum(held_ns) + QUERIES * LATE_S * 1e9 / 4
    assert account_for(measured[CLIENT], ANSWERS) == (0, 0)


async def test_more_questions_than_are_remembered_are_measured_or_missing(
    start_engine: Start, pair: Pair
) -> None:
    """The newest of those without an answer are remembered."""
    engine = await watch(start_engine, *pair)
    held = 6000
    with Peers(*pair) as peers:
        sender = peers.hold(map(query, range(held)))
        for number in range(held):
            peers.server.sendto(query(number), sender)
        samples, missing = account_for(engine.read()[SERVER], ANSWERS)
    assert held - FEW <= samples + missing <= held
    assert missing > FEW


async def test_questions_that_are_answered_in_another_order_have_their_own_time(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        for number in range(3):
            peers.client.send(query(number, b"name %d" % number))
        sender, *_ = [peers.take() for _ in range(3)]
        read_ns = time.monotonic_ns()
        for number in (2, 0, 1):
            await asyncio.sleep(LATE_S)
            peers.server.sendto(query(number), sender)
        passed_ns = time.monotonic_ns() - read_ns
        answers = engine.read()[SERVER].stage(ANSWERS).histogram
    assert answers.count == 3
    assert 6 * LATE_S * 1e9 / BUCKET < answers.sum_ns < 3 * passed_ns


async def test_datagrams_that_begin_alike_have_no_answers(start_engine: Start, pair: Pair) -> None:
    """As of a stream in both directions: the first two bytes are no id."""
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        for _ in range(QUERIES):
            peers.answer_late(b"same question", b"same answer", 0.001)
        assert count(engine.read()[SERVER], ANSWERS) <= 1


async def test_a_question_that_is_asked_again_waits_since_the_first_time(
    start_engine: Start, pair: Pair
) -> None:
    engine = await watch(start_engine, *pair)
    with Peers(*pair) as peers:
        peers.client.send(query(1))
        peers.take()
        read_ns = time.monotonic_ns()
        peers.wait_in_vain()
        again_ns = time.monotonic_ns()
        peers.answer_late(query(1), query(1), 0)
        answers = engine.read()[SERVER].stage(ANSWERS).histogram
    assert answers.count == 1
    assert answers.max_ns >= again_ns - read_ns


@pytest.mark.parametrize("kind", [TYPE_A, TYPE_AAAA])
async def test_the_second_that_the_c_librarys_resolver_waits_is_seen(
    start_engine: Start, pair: Pair, tmp_path: Path, kind: int
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    with name_server(server, kind) as serving:
        found = look_up(client, server, tmp_path)
    assert "192.0.2.1" in found
    assert "2001:db8::" in found
    measured = OfClient(engine).until_replied(serving.replies)
    assert measured.count == serving.replies
    assert measured.max_ns >= serving.waited_ns(kind) > 0
