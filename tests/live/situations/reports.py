"""Ten situations more, from public reports, chosen before any verdict on them was seen."""

from __future__ import annotations

from tests.live.situations.answers import Cause, answer
from tests.live.situations.scenes import back_to_back, behind_slow_devices, far_apart, through_node
from tests.live.situations.situation import Situation, client, server, situation

WAITS = (
    "requests p50 {client[p50_ms]:.1f} ms, p99 {client[p99_ms]:.1f} ms, max {client[max_ms]:.0f} ms"
)
DROP_CONNECTS = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    tcp dport 7001 counter drop
  }
}
"""
RULES = 100_000


def _many_rules() -> str:
    """A rule for each of many services, and all of them before the one that matters."""
    rules = (
        f"ip daddr 10.{number >> 16}.{number >> 8 & 255}.{number & 255} tcp dport 443 drop"
        for number in range(RULES)
    )
    head = "table inet services { chain forward { type filter hook forward priority 0;"
    return "\n".join((head, *rules, "counter accept", "}", "}"))


@situation
def refused_connects() -> Situation:
    """One of two endpoints is gone and refuses, as during a rolling update.

    https://github.com/kubernetes/kubernetes/issues/86280
    """
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=4, reconnect=True, gap=20, ports=[7000, 7001], seconds=5),
        was_made=lambda facts: facts["client"]["connect_failed"] >= 50,
        truth="{client[connect_failed]:.0f} connects refused, {client[count]:.0f} answers",
        from_client=answer(Cause.CONNECT_FAILURES),
        from_server=answer(Cause.NONE, Cause.CONNECT_FAILURES),
    )


@situation
def connects_that_a_policy_drops() -> Situation:
    """A network policy drops the SYNs to one of two ports; the client gives up after 1.5 s.

    https://github.com/projectcalico/calico/issues/6509
    """
    return Situation(
        scene=through_node(DROP_CONNECTS),
        server=server("answer"),
        client=client(
            "ask", connections=8, reconnect=True, ports=[7000, 7001], patience=1500, seconds=7
        ),
        was_made=lambda facts: facts["client"]["connect_failed"] >= 8,
        truth="{client[connect_failed]:.0f} connects without an answer after 1.5 s; "
        "the node dropped {nft[packets]:.0f} SYNs",
        from_client=answer(Cause.CONNECT_FAILURES, Cause.DROPS, half=[Cause.PACKET_LOSS]),
        from_server=answer(Cause.NONE, Cause.INSUFFICIENT_DATA),
    )


@situation
def large_packets_vanish() -> Situation:
    """The overlay's MTU is smaller than the pods', and no ICMP says so: only small packets arrive.

    https://github.com/moby/libnetwork/issues/2661
    """
    return Situation(
        scene=far_apart(1, mtu=1400),
        server=server("answer", request=20_000),
        client=client("ask", connections=8, request=20_000, seconds=6),
        was_made=lambda facts: facts["client"]["pending"] == 8,
        truth="{client[pending]:.0f} uploads of 20 KB have had no answer for "
        "{client[oldest_s]:.1f} s; the network dropped {wire[dropped]:.0f} packets over 1400 bytes",
        from_client=answer(Cause.PACKET_LOSS, half=[Cause.NETWORK]),
        # The handshakes arrive and nothing else: a connection without data may be an idle one.
        from_server=answer(
            Cause.PACKET_LOSS, Cause.INSUFFICIENT_DATA, half=[Cause.NONE], says="the path loses"
        ),
    )


@situation
def bandwidth_annotation() -> Situation:
    """A token bucket limits what the node sends to the client's pod.

    https://github.com/containernetworking/plugins/pull/1025
    """
    return Situation(
        scene=behind_slow_devices("20mbit", 150_000),
        server=server("answer", reply=50_000),
        client=client("ask", connections=8, reply=50_000, seconds=5),
        was_made=lambda facts: facts["tbf"]["overlimits"] > 100 and facts["client"]["p50_ms"] > 40,
        truth="{client[count]:.0f} answers of 50 KB, p50 {client[p50_ms]:.0f} ms; "
        "the token bucket was over its limit {tbf[overlimits]:.0f} times",
        from_client=answer(Cause.HOST_PATH, half=[Cause.QDISC_BACKLOG, Cause.NETWORK]),
        from_server=answer(Cause.QDISC_BACKLOG),
    )


@situation
def blocked_event_loop() -> Situation:
    """The server's only thread is blocked for 250 ms in every second.

    https://github.com/spdy-http2/node-spdy/issues/328
    """
    return Situation(
        scene=back_to_back,
        server=server("loop", pause=250, every=1000),
        client=client("ask", connections=8, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["slow"] >= 8,
        truth=WAITS + "; blocked {server[count]:.0f} times for 250 ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.SLOW_READER, half=[Cause.APPLICATION]),
    )


@situation
def name_server_with_a_slow_upstream() -> Situation:
    """A name server answers each query after 300 ms.

    https://github.com/coredns/coredns/issues/2015
    """
    return Situation(
        scene=back_to_back,
        server=server("datagrams", port=53, think=300),
        client=client("query", port=53, seconds=6, threads=10, gap=10, patience=5000),
        was_made=lambda facts: facts["client"]["p50_ms"] > 290 and facts["client"]["count"] > 100,
        truth="{client[count]:.0f} lookups, p50 {client[p50_ms]:.0f} ms",
        from_client=answer(Cause.DNS, half=[Cause.PEER]),
        from_server=answer(Cause.APPLICATION, half=[Cause.DNS]),
    )


@situation
def single_synchronous_worker() -> Situation:
    """One worker serves one connection after the other; the rest wait in its backlog.

    https://github.com/benoitc/gunicorn/issues/2183
    """
    return Situation(
        scene=back_to_back,
        server=server("answer", alone=True, think=20),
        client=client("ask", connections=8, reconnect=True, gap=1, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 80,
        truth=WAITS + "; the worker takes 20 ms for each",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.ACCEPT_QUEUE, half=[Cause.SLOW_READER, Cause.APPLICATION]),
    )


@situation
def silent_connection_has_the_only_worker() -> Situation:
    """A connection that sends nothing keeps the only worker in recv(); the others wait.

    https://github.com/pypi/warehouse/pull/20110
    """
    return Situation(
        scene=back_to_back,
        server=server("answer", alone=True),
        client=client("ask", silent=1, connections=8, seconds=6),
        was_made=lambda facts: facts["client"]["pending"] == 8,
        truth="{client[pending]:.0f} requests have waited for {client[oldest_s]:.1f} s",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.ACCEPT_QUEUE, half=[Cause.SLOW_READER]),
    )


@situation
def corked_answer() -> Situation:
    """The server sets TCP_CORK, and never takes it off: the kernel waits 200 ms for more.

    https://github.com/uNetworking/uWebSockets/issues/639
    """
    return Situation(
        scene=back_to_back,
        server=server("answer", cork=True),
        client=client("ask", connections=8, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 150,
        truth=WAITS + "; the server answers at once, corked",
        from_client=answer(Cause.PEER, half=[Cause.HELD_BACK]),
        from_server=answer(Cause.HELD_BACK, half=[Cause.APPLICATION]),
    )


@situation
def thousands_of_rules() -> Situation:
    """Each packet passes a hundred thousand rules of the node, one by one.

    https://github.com/kubernetes/kubernetes/issues/14870
    """
    slow = answer(Cause.HOST_PATH)
    return Situation(
        scene=through_node(_many_rules),
        server=server("answer"),
        client=client("ask", connections=2, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 2,
        truth=WAITS + f"; {{nft[packets]:.0f}} packets passed {RULES:,} rules",
        from_client=slow,
        from_server=slow,
    )
