"""Situations of the network: packets that get lost, come late, or wait to be sent."""

from __future__ import annotations

from tests.live.situations.answers import Cause, answer
from tests.live.situations.scenes import back_to_back, far_apart, through_node
from tests.live.situations.situation import Facts, Situation, client, server, situation

LOST = (
    "{client[slow]:.0f} of {client[count]:.0f} requests took over 100 ms, "
    "max {client[max_ms]:.0f} ms; the network lost {wire[dropped]:.0f} packets"
)
ROUND_TRIPS = (
    "requests p50 {client[p50_ms]:.1f} ms, p99 {client[p99_ms]:.1f} ms; the server answers at once"
)
UPLOADS = "{client[count]:.0f} uploads of 150 KB, p50 {client[p50_ms]:.0f} ms"
DROP_ONE_QUERY_IN_50 = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    udp dport 53 numgen inc mod 50 == 0 counter drop
  }
}
"""
DROP_ONE_REQUEST_IN_30 = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    tcp dport 7000 tcp flags & psh == psh numgen inc mod 30 == 0 counter drop
  }
}
"""
DROP_REQUESTS = DROP_ONE_REQUEST_IN_30.replace("numgen inc mod 30 == 0 ", "")


def loses_requests(facts: Facts) -> bool:
    return facts["client"]["slow"] >= 5 and facts["wire"]["dropped"] >= 5


@situation
def loss_of_2_5_percent() -> Situation:
    """Requests and answers are lost beyond the node, and sent again after a time-out."""
    lost = answer(Cause.PACKET_LOSS, half=[Cause.NETWORK, Cause.CONGESTION])
    return Situation(
        scene=far_apart(1, share=0.025),
        server=server("answer"),
        client=client("ask", connections=4, gap=4, seconds=6),
        was_made=loses_requests,
        truth=LOST,
        from_client=lost,
        from_server=lost,
    )


@situation
def loss_of_33_percent() -> Situation:
    """A third of all requests and answers is lost."""
    lost = answer(Cause.PACKET_LOSS, half=[Cause.NETWORK, Cause.CONGESTION])
    return Situation(
        scene=far_apart(1, share=0.33),
        server=server("answer"),
        client=client("ask", connections=16, gap=4, seconds=7),
        was_made=loses_requests,
        truth=LOST,
        from_client=lost,
        from_server=lost,
    )


@situation
def one_syn_in_twelve_lost() -> Situation:
    """A connection for each request; the server never sees the SYNs that are lost."""
    return Situation(
        scene=far_apart(0.5, nth_syn=12),
        server=server("answer"),
        client=client("ask", connections=6, reconnect=True, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["connect_slow"] >= 5,
        truth="{client[connect_slow]:.0f} of {client[connect_count]:.0f} connects took over "
        "100 ms, max {client[connect_max_ms]:.0f} ms; "
        "{client_tcp[TCPSynRetrans]:.0f} SYNs repeated",
        from_client=answer(Cause.PACKET_LOSS, half=[Cause.CONNECT_FAILURES, Cause.NETWORK]),
        from_server=answer(Cause.NONE, Cause.PACKET_LOSS, half=[Cause.INSUFFICIENT_DATA]),
    )


@situation
def dns_query_dropped_on_the_node() -> Situation:
    """A rule of the node drops one DNS query in 50; the resolver asks again after 1 s."""
    return Situation(
        scene=through_node(DROP_ONE_QUERY_IN_50),
        server=server("datagrams", port=53),
        client=client("query", port=53, seconds=6, threads=4, gap=4, patience=1000),
        was_made=lambda facts: facts["client"]["slow"] >= 4 and facts["nft"]["packets"] >= 4,
        truth="{client[slow]:.0f} of {client[count]:.0f} lookups took 1 s; "
        "the node dropped {nft[packets]:.0f} queries",
        from_client=answer(Cause.DROPS, half=[Cause.DNS, Cause.PACKET_LOSS]),
        from_server=answer(Cause.NONE, half=[Cause.INSUFFICIENT_DATA]),
    )


@situation
def syns_that_are_held_up() -> Situation:
    """A firewall before the server takes 150 ms for each new connection, and none for the rest."""
    return Situation(
        scene=far_apart(0.5, late_syn_ms=150),
        server=server("answer"),
        client=client("ask", connections=6, reconnect=True, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["connect_slow"] >= 50,
        truth="{client[connect_slow]:.0f} of {client[connect_count]:.0f} connects took over "
        "100 ms, max {client[connect_max_ms]:.0f} ms; no SYN was lost",
        from_client=answer(Cause.PEER, half=[Cause.NETWORK], says="SYNs are answered late"),
        from_server=answer(Cause.NONE),
    )


@situation
def requests_dropped_on_the_node() -> Situation:
    """A rule of the node drops one request in 30; TCP sends it again.

    The request has the ACK of the answer before, which the server sends again.
    """
    return Situation(
        scene=through_node(DROP_ONE_REQUEST_IN_30),
        server=server("answer"),
        client=client("ask", connections=8, gap=20, seconds=6),
        was_made=lambda facts: facts["client"]["slow"] >= 5 and facts["nft"]["packets"] >= 5,
        truth=ROUND_TRIPS + "; the node dropped {nft[packets]:.0f} requests",
        from_client=answer(Cause.DROPS, half=[Cause.PACKET_LOSS]),
        from_server=answer(Cause.PACKET_LOSS, half=[Cause.NONE]),
    )


@situation
def rule_that_drops_all_requests() -> Situation:
    """Connections stand, and no request gets through: a rule of the node knows their content."""
    return Situation(
        scene=through_node(DROP_REQUESTS),
        server=server("answer"),
        client=client("ask", connections=8, seconds=6),
        was_made=lambda facts: facts["client"]["pending"] == 8,
        truth="{client[pending]:.0f} requests have had no answer for {client[oldest_s]:.1f} s; "
        "the node dropped {nft[packets]:.0f} packets",
        from_client=answer(Cause.DROPS, half=[Cause.PACKET_LOSS]),
        from_server=answer(Cause.NONE, Cause.INSUFFICIENT_DATA),
    )


@situation
def rtt_growing_from_2_to_50_ms() -> Situation:
    """A queue on the path fills up, and stays full."""
    grown = answer(Cause.NETWORK, half=[Cause.CONGESTION], says="queu")
    return Situation(
        scene=far_apart([(0, 2), (0.5, 2), (1.5, 50)]),
        server=server("answer"),
        client=client("ask", connections=8, gap=20, seconds=7),
        was_made=lambda facts: facts["client"]["p50_ms"] > 45,
        truth=ROUND_TRIPS,
        from_client=grown,
        from_server=grown,
    )


@situation
def rtt_growing_from_20_to_44_ms() -> Situation:
    """The round trip more than doubles."""
    grown = answer(Cause.NETWORK, half=[Cause.CONGESTION], says="queu")
    return Situation(
        scene=far_apart([(0, 20), (0.5, 20), (1.5, 44)]),
        server=server("answer"),
        client=client("ask", connections=4, seconds=7),
        was_made=lambda facts: facts["client"]["p50_ms"] > 40,
        truth=ROUND_TRIPS,
        from_client=grown,
        from_server=grown,
    )


@situation
def rtt_of_30_ms_from_the_start() -> Situation:
    """A distant server."""
    far = answer(Cause.NETWORK)
    return Situation(
        scene=far_apart(30),
        server=server("answer"),
        client=client("ask", connections=4, seconds=5),
        was_made=lambda facts: facts["client"]["p50_ms"] > 29,
        truth=ROUND_TRIPS,
        from_client=far,
        from_server=far,
    )


@situation
def pooled_connection_in_a_black_hole() -> Situation:
    """One connection of a pool is cut without a word; its next request never gets through."""
    return Situation(
        scene=far_apart(1, swallow_after_s=1),
        server=server("answer"),
        client=client("ask", connections=4, gap=5, seconds=7),
        was_made=lambda facts: facts["client"]["pending"] >= 1 and facts["client"]["oldest_s"] > 4,
        truth="{client[pending]:.0f} request has had no answer for {client[oldest_s]:.1f} s, "
        "{client_tcp[TCPTimeouts]:.0f} retransmission time-outs; "
        "the others p99 {client[p99_ms]:.1f} ms",
        from_client=answer(Cause.PACKET_LOSS, half=[Cause.NETWORK]),
        from_server=answer(Cause.NONE, Cause.PACKET_LOSS),
    )


@situation
def body_waits_for_a_delayed_ack() -> Situation:
    """The server writes head and body apart, without TCP_NODELAY; the client delays its ACK."""
    return Situation(
        scene=back_to_back,
        server=server("answer", nodelay=False, head=100, reply=200),
        client=client("ask", connections=4, reply=200, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 30,
        truth="answers p50 {client[p50_ms]:.1f} ms; {client_tcp[DelayedACKs]:.0f} delayed ACKs",
        from_client=answer(Cause.HELD_BACK, half=[Cause.PEER]),
        from_server=answer(Cause.HELD_BACK, half=[Cause.APPLICATION]),
    )


@situation
def client_writes_twice_then_reads() -> Situation:
    """The client writes a request in two parts, without TCP_NODELAY; the server delays its ACK."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=4, nodelay=False, pieces=2, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 30,
        truth="answers p50 {client[p50_ms]:.1f} ms; {server_tcp[DelayedACKs]:.0f} delayed ACKs",
        from_client=answer(Cause.HELD_BACK, half=[Cause.APPLICATION]),
        from_server=answer(Cause.HELD_BACK, half=[Cause.PEER]),
    )


@situation
def slow_start_after_idle() -> Situation:
    """Uploads of 150 KB after pauses: each begins with a small congestion window."""
    return Situation(
        scene=far_apart(20),
        server=server("answer", request=150_000, receive_buffer=200_000),
        client=client("ask", connections=4, request=150_000, gap=900, congestion="reno", seconds=7),
        was_made=lambda facts: facts["client"]["p50_ms"] > 60,
        truth=UPLOADS + "; a round trip takes 20 ms",
        from_client=answer(Cause.CONGESTION, half=[Cause.NETWORK]),
        from_server=answer(Cause.CONGESTION, Cause.NETWORK, half=[Cause.PEER]),
    )


@situation
def receive_buffer_of_8_kb() -> Situation:
    """Uploads over a round trip of 20 ms to a server whose receive buffer has 8 KB."""
    small = answer(Cause.RECEIVE_WINDOW, half=[Cause.NETWORK])
    return Situation(
        scene=far_apart(20),
        server=server("answer", request=150_000, receive_buffer=8192),
        client=client("ask", connections=2, request=150_000, gap=10, seconds=7),
        was_made=lambda facts: facts["client"]["p50_ms"] > 150,
        truth=UPLOADS + "; a round trip takes 20 ms",
        from_client=small,
        from_server=small,
    )


@situation
def pacing() -> Situation:
    """The client paces its socket to 1 MB/s, and sends 64 KB at a time."""
    return Situation(
        scene=back_to_back,
        server=server("answer", request=64_000),
        client=client("ask", connections=2, request=64_000, pacing=1_000_000, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 40,
        truth="{client[count]:.0f} requests of 64 KB, p50 {client[p50_ms]:.0f} ms; "
        "SO_MAX_PACING_RATE is 1 MB/s",
        from_client=answer(Cause.CONGESTION, half=[Cause.APPLICATION], says="pac(ed|ing)"),
        from_server=answer(Cause.NONE, Cause.PEER, Cause.CONGESTION),
    )
