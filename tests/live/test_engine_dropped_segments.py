"""Segments that the node drops, joined to their retransmissions: what a drop has cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.pending import Pending
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import counts_of
from tests.live.measuring import CLIENT, SERVER, watch_on_host
from tests.live.netfilter import load_rules
from tests.live.node_drops import NODE_DROPS, are_missing, dropped_by, routed
from tests.live.pending_readings import is_unavailable, pending
from tests.live.pods import Namespace
from tests.live.sockets import (
    Connection,
    connect,
    connection,
    listen,
    read_all,
    tcp_figures,
)
from tests.live.targets import until

Start = Callable[..., KernelEngine]
pytestmark = pytest.mark.every_kernel

ASKED = 20
KINDS = {"unacknowledgedRetransmits", "unacknowledgedDrops"}
REQUEST = b"q" * 64
DROP_ALL = NODE_DROPS.format(rule="tcp dport 7000")
# Every third request: a retransmission comes after two packets that pass.
DROP_REQUESTS = NODE_DROPS.format(
    rule="tcp dport 7000 tcp flags & psh == psh numgen inc mod 3 == 0"
)
DROP_SYNS = NODE_DROPS.format(rule="tcp dport 7000 tcp flags syn numgen inc mod 2 == 0")
DROP_ACKS = """
table inet bare {
  chain output {
    type filter hook output priority 0;
    tcp sport 7000 tcp flags & (syn | fin | psh) == 0 meta length < 100 counter drop
  }
}
"""


def ask(both: Connection, times: int) -> None:
    for _ in range(times):
        both.client.sendall(REQUEST)
        read_all(both.server, len(REQUEST))
        both.server.sendall(b"a")
        read_all(both.client, 1)


def joined(measurement: Measurement) -> dict[str, int]:
    """The counters of what was dropped and sent again."""
    names = ("droppedAndResent", "droppedAndResentNs", "droppedAcks")
    return {name: measurement.counters.get(name, 0) for name in names}


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_the_recoveries_of_dropped_segments_are_of_these_drops(
    start_engine: Start, typed: bool
) -> None:
    with routed() as (host, client, server):
        engine = await watch_on_host(
            lambda **options: start_engine(typed=typed, **options), host, client, server
        )
        with connection(client.namespace, server.namespace, server.address) as both:
            ask(both, 3)
            host.load_rules(DROP_REQUESTS)
            ask(both, ASKED)
            dropped, kernel = dropped_by(host), tcp_figures(client.namespace)
        measured = engine.read()[CLIENT]
        found, recovery = joined(measured), measured.stage("tcp.recovery").histogram
        assert dropped >= ASKED // 3
        assert recovery.count > 0
        if are_missing(engine):
            assert set(found.values()) == {0}
            return
        assert measured.counters["drops.NETFILTER_DROP"] == dropped
        assert found["droppedAndResent"] in counts_of(dropped)  # by a timer, which may be hidden
        assert found["droppedAcks"] == 0
        # A busy machine may send again what was not dropped.
        others = kernel["RetransSegs"] - found["droppedAndResent"]
        assert recovery.sum_ns >= found["droppedAndResentNs"] > 0
        assert others or recovery.sum_ns == found["droppedAndResentNs"]


async def test_a_connect_whose_syn_the_node_drops_has_waited_for_this_drop(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        engine = await watch_on_host(start_engine, host, client, server)
        with listen(server.namespace, server.address):
            host.load_rules(DROP_SYNS)
            with connect(client.namespace, server.address):
                assert dropped_by(host) == 1
        measured = engine.read()[CLIENT]
        found, recovery = joined(measured), measured.stage("tcp.recovery").histogram
        assert measured.counters["connectRetransmits"] == 1
        if are_missing(engine):
            assert set(found.values()) == {0}
            return
        assert found["droppedAndResent"] == measured.counters["drops.NETFILTER_DROP"] == 1
        assert found["droppedAndResentNs"] == recovery.sum_ns >= 10**9


async def test_bare_acks_that_the_pod_itself_drops_have_their_own_counter(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        engine = await watch_on_host(start_engine, host, client, server)
        with connection(client.namespace, server.namespace, server.address) as both:
            ask(both, 3)
            load_rules(server, DROP_ACKS)
            both.client.sendall(REQUEST)
            read_all(both.server, len(REQUEST))
            until(lambda: dropped_by(server.namespace) > 0, "an ACK is dropped")
            both.server.sendall(b"a")
            read_all(both.client, 1)
            _drop_no_more(server.namespace)
        measured = engine.read()[SERVER]
        if are_missing(engine):
            assert joined(measured)["droppedAcks"] == 0
            return
        assert joined(measured)["droppedAcks"] == measured.counters["drops.NETFILTER_DROP"] > 0
        assert joined(measured)["droppedAndResent"] == 0


@pytest.mark.unscoped
async def test_a_connection_whose_segments_the_node_drops_is_pending_for_that(
    start_engine: Start,
) -> None:
    with routed() as (host, client, server):
        engine = await watch_on_host(start_engine, host, client, server)
        if is_unavailable(engine):
            return
        with connection(client.namespace, server.namespace, server.address) as both:
            ask(both, 3)
            host.load_rules(DROP_ALL)
            began_ns = time.monotonic_ns()
            both.client.sendall(REQUEST)
            kind = "unacknowledgedRetransmits" if are_missing(engine) else "unacknowledgedDrops"
            found: Mapping[str, Pending] = {}

            def is_known() -> bool:
                nonlocal found
                found = pending(engine, CLIENT)
                return kind in found

            until(is_known, "the segment is sent again")  # its first timer may be hidden
            age_ns = time.monotonic_ns() - began_ns
            assert KINDS & found.keys() == {kind}
            waits = found[kind]
            assert (waits.count, waits.sockets, waits.bytes) == (1, 1, len(REQUEST))
            assert 0 < waits.oldest_ns <= age_ns
            _drop_no_more(host)
            read_all(both.server, len(REQUEST))


def _drop_no_more(there: Namespace) -> None:
    """Let connections end: a socket that waits for the ACK of its FIN keeps its namespace."""
    there.execute("nft", "flush", "ruleset")
