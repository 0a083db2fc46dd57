"""Requests that wait too long, by what their connection or others to the same peer have shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from latencyprobe.domain.patience import (
    ANSWERS_OF_A_PAST,
    FIRST_ANSWERS,
    FIRST_REQUESTS,
    LEAST_PATIENCE_NS,
    MISSING_ANSWERS,
    STUCK_REQUESTS,
    first_step,
    patience_ns,
)
from latencyprobe.domain.pending import Pending
from latencyprobe_agent.kernel.abi import MAX_PEERS
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.measuring import CLIENT, SERVER, watch
from tests.live.netfilter import load_rules
from tests.live.pending_readings import both_pending, connections, is_unavailable, peers, pending
from tests.live.pods import Pod
from tests.live.sockets import (
    PATIENCE_SECONDS,
    PORT,
    Connection,
    connect,
    exchange,
    listen,
    read_all,
    wait_for_bytes,
)
from tests.patience import patient

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
pytestmark = [pytest.mark.every_kernel, pytest.mark.timeout(patient(120))]

UNANSWERED, IN_SERVICE = "unansweredRequests", "requestsInService"
# The unit of a connection's slowest answer, rounded up: ANSWER_SHIFT, bpf/modules/turns.bpf.c.
ANSWER_UNIT_NS = 1 << 24
JUDGED = frozenset({MISSING_ANSWERS, STUCK_REQUESTS, FIRST_ANSWERS, FIRST_REQUESTS})
DROP_ALL = """
table ip patience {
  chain input {
    type filter hook input priority 0;
    tcp dport 7000 drop
  }
}
"""


def ask(both: Connection) -> None:
    """A request that the server reads, and does not answer."""
    both.client.sendall(b"q" * 64)
    read_all(both.server, 64)


def answer(both: Connection) -> None:
    both.server.sendall(b"r" * 64)
    read_all(both.client, 64)


def judged(found: Mapping[str, Pending]) -> dict[str, int]:
    return {kind: each.count for kind, each in found.items() if kind in JUDGED}


def both_judged(engine: KernelEngine) -> tuple[dict[str, int], dict[str, int]]:
    """What is said of waiting requests at the client and at the server, in one reading."""
    client, server = both_pending(engine)
    return judged(client), judged(server)


async def until(is_so: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.05)


async def until_old(engine: KernelEngine, count: int = 1, *, slowest_ns: int = 0) -> None:
    """Until so many requests, which were all asked by now, are late at both ends.

    `slowest_ns`: how long the slowest answer took at most. First requests are late from a step on.
    """
    asked_by_ns = time.monotonic_ns()
    late_ns = LEAST_PATIENCE_NS << first_step(patience_ns(slowest_ns + ANSWER_UNIT_NS))
    while time.monotonic_ns() <= asked_by_ns + late_ns:
        await asyncio.sleep(0.05)
    client, server = both_pending(engine)
    for waiting in (client[UNANSWERED], server[IN_SERVICE]):
        assert waiting.count == count
        assert waiting.waiting_ns > count * late_ns


async def test_a_client_that_writes_on_still_waits_for_its_answer(
    start_engine: Start, pair: Pair
) -> None:
    """As one that sends commands or heartbeats ahead, to a process that hangs."""
    engine = await watch(start_engine, *pair)
    if is_unavailable(engine):
        return
    with connections(*pair, 1) as (both,):
        exchange(both, ANSWERS_OF_A_PAST)
        ask(both)
        for _ in range(6):
            await asyncio.sleep(0.1)
            ask(both)
        await until(
            lambda: judged(pending(engine, CLIENT)).get(MISSING_ANSWERS) == 1,
            lambda: pending(engine, CLIENT),
        )


async def test_a_request_is_late_by_the_past_of_its_connection(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 2) as (both, idle):
        slowest_ns = exchange(both, ANSWERS_OF_A_PAST)
        exchange(idle, ANSWERS_OF_A_PAST)
        ask(both)
        await until_old(engine, slowest_ns=slowest_ns)
        of_client, of_server = both_pending(engine)

        assert (judged(of_client), judged(of_server)) == ({MISSING_ANSWERS: 1}, {STUCK_REQUESTS: 1})
        for found, late, all_of_them in (
            (of_client, MISSING_ANSWERS, UNANSWERED),
            (of_server, STUCK_REQUESTS, IN_SERVICE),
        ):
            assert found[late] == found[all_of_them]
        (peer,) = peers(engine)
        assert (str(peer.address), peer.kind) == (f"{server.address}:{PORT}", MISSING_ANSWERS)
        assert peer.count == 1
        assert of_client[MISSING_ANSWERS].waiting_ns <= peer.waiting_ns == peer.oldest_ns
        assert peers(engine, SERVER) == ()

        answer(both)
        assert both_pending(engine) == ({}, {})
        assert peers(engine) == ()


async def test_a_first_request_is_late_by_the_past_of_other_connections(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 3) as (busy, *hung):
        slowest_ns = exchange(busy, ANSWERS_OF_A_PAST)
        for each in hung:
            ask(each)
        await until_old(engine, 2, slowest_ns=slowest_ns)
        assert both_judged(engine) == ({MISSING_ANSWERS: 2}, {STUCK_REQUESTS: 2})
        assert [(peer.kind, peer.count) for peer in peers(engine)] == [(MISSING_ANSWERS, 2)]


async def test_the_past_of_connections_that_have_closed_counts(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 2) as (closed, hung):
        slowest_ns = exchange(closed, ANSWERS_OF_A_PAST)
        ask(hung)
        engine.read()
        closed.close()
        await until_old(engine, slowest_ns=slowest_ns)
        assert both_judged(engine) == ({MISSING_ANSWERS: 1}, {STUCK_REQUESTS: 1})


async def test_of_a_peer_without_any_answer_nothing_is_known(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 2) as opened:
        for each in opened:
            ask(each)
        await until_old(engine, 2)
        assert both_judged(engine) == ({FIRST_ANSWERS: 2}, {FIRST_REQUESTS: 2})
        assert [(peer.kind, peer.count) for peer in peers(engine)] == [(FIRST_ANSWERS, 2)]


async def test_a_single_answer_is_no_past(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 1) as (both,):
        slowest_ns = exchange(both, 1)
        ask(both)
        await until_old(engine, slowest_ns=slowest_ns)
        assert both_judged(engine) == ({}, {})
        assert peers(engine) == ()


async def test_a_request_that_was_not_acknowledged_is_late_without_a_past(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 1) as (both,):
        load_rules(server, DROP_ALL)
        both.client.sendall(b"q" * 64)
        await until(lambda: judged(pending(engine, CLIENT)) != {}, lambda: pending(engine, CLIENT))
        found = pending(engine, CLIENT)
        assert judged(found) == {MISSING_ANSWERS: 1}
        assert found[MISSING_ANSWERS].oldest_ns > LEAST_PATIENCE_NS
        assert judged(pending(engine, SERVER)) == {}
        both.server.close()


async def test_both_sides_that_speak_at_once_are_not_judged(
    start_engine: Start, pair: Pair
) -> None:
    """Their turns are no requests: a message may be of a stream, and nobody answers it."""
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with connections(client, server, 1) as (both,):
        slowest_ns = exchange(both, ANSWERS_OF_A_PAST)
        for _ in range(8):
            both.client.sendall(b"q" * 128)
            wait_for_bytes(both.server, 128)
            for _ in range(2):  # it answers the first half before it reads the other one
                read_all(both.server, 64)
                both.server.sendall(b"r" * 64)
            wait_for_bytes(both.client, 128)
            ask(both)
            read_all(both.client, 128)
            answer(both)
        ask(both)
        await until_old(engine, slowest_ns=slowest_ns)
        assert both_judged(engine) == ({}, {})


@pytest.mark.parametrize("address", ["2001:db8::2", "::ffff:198.51.100.2"])
async def test_a_peer_is_named_by_its_address(
    start_engine: Start, pair: Pair, address: str
) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    with ExitStack() as stack:
        listener = stack.enter_context(listen(server.namespace, "::"))
        asking = stack.enter_context(connect(client.namespace, address))
        both = Connection(asking, stack.enter_context(listener.accept()[0]))
        slowest_ns = exchange(both, ANSWERS_OF_A_PAST)
        ask(both)
        await until_old(engine, slowest_ns=slowest_ns)
        (peer,) = peers(engine)
        shown = f"[{address}]" if "." not in address else address.rpartition(":")[2]
        assert str(peer.address) == f"{shown}:{PORT}"


async def test_peers_beyond_the_limit_are_counted(start_engine: Start, pair: Pair) -> None:
    client, server = pair
    engine = await watch(start_engine, client, server)
    if is_unavailable(engine):
        return
    beyond = 7
    with ExitStack() as stack:
        for port in range(20_000, 20_000 + MAX_PEERS // 2 + beyond):
            listener = stack.enter_context(listen(server.namespace, server.address, port))
            asking = stack.enter_context(connect(client.namespace, server.address, port))
            both = Connection(asking, stack.enter_context(listener.accept()[0]))
            exchange(both, 1)  # a peer at each end
        engine.read()
        assert engine.lost_parts.keys() == {CLIENT, SERVER}
        for (lost,) in engine.lost_parts.values():
            assert f"more peers than its part of {MAX_PEERS}" in lost.reason
        assert engine._object is not None
        pending = engine._object.memories.pending
        assert pending is not None
        assert pending.crowded == {CLIENT: beyond, SERVER: beyond}

    def has_room() -> bool:
        engine.read()
        return not engine.lost_parts

    await until(has_room, lambda: engine.lost_parts)
