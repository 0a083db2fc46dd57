"""Situations of the other end: the client is late, or a server takes uploads."""

from __future__ import annotations

from tests.live.situations.answers import HEALTHY_AND_QUIET, Cause, answer
from tests.live.situations.scenes import (
    back_to_back,
    far_apart,
    through_node,
    with_quota,
    with_slow_client,
)
from tests.live.situations.situation import Situation, client, server, situation

POLICE = """
table inet node {
  chain forward {
    type filter hook forward priority 0;
    tcp dport 7000 limit rate over 400 kbytes/second burst 20 kbytes counter drop
  }
}
"""


@situation
def reader_slower_than_the_sender() -> Situation:
    """The client takes 20 ms for each 16 KiB of what the server sends as fast as it may."""
    return Situation(
        scene=back_to_back,
        server=server("stream", size=65536, gap=0),
        client=client("listen", connections=4, late=20, seconds=6),
        was_made=lambda facts: facts["client"]["read"] > 1 << 20,
        truth="{client[read]:.0f} bytes were read",
        from_client=answer(Cause.SLOW_READER),
        from_server=answer(Cause.RECEIVE_WINDOW),
    )


@situation
def client_that_reads_late() -> Situation:
    """The client's thread is busy for 20 ms while the answer is there."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=4, late=20, gap=2, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 20,
        truth="requests p50 {client[p50_ms]:.1f} ms; the server answers at once",
        from_client=answer(Cause.SLOW_READER),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def quota_of_the_client() -> Situation:
    """The client's CPU quota is used up; the server is idle."""
    return Situation(
        scene=with_quota(10, of_client=True),
        server=server("answer"),
        client=client("ask", connections=4, burn=1, gap=2, seconds=6),
        was_made=lambda facts: facts["cpu"]["throttled"] >= 10,
        truth="throttled in {cpu[throttled]:.0f} of {cpu[periods]:.0f} periods; "
        "requests p50 {client[p50_ms]:.1f} ms, p99 {client[p99_ms]:.1f} ms",
        from_client=answer(Cause.CPU_THROTTLED),
        is_prompt=False,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def uploads_to_a_slow_reader() -> Situation:
    """The server takes 5 ms before each read of an upload of 4 MB."""
    return Situation(
        scene=back_to_back,
        server=server("answer", request=4_000_000, late=5),
        client=client("ask", connections=8, request=4_000_000, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 50,
        truth="{client[count]:.0f} uploads of 4 MB, p50 {client[p50_ms]:.0f} ms",
        from_client=answer(Cause.RECEIVE_WINDOW, Cause.PEER),
        from_server=answer(Cause.SLOW_READER),
    )


@situation
def policed_uploads() -> Situation:
    """A rule of the node drops what exceeds 400 kB a second; TCP sends it again."""
    return Situation(
        scene=through_node(POLICE),
        server=server("answer", request=40_000),
        client=client("ask", connections=8, request=40_000, seconds=6),
        was_made=lambda facts: facts["nft"]["packets"] >= 50,
        truth="{client[count]:.0f} uploads of 40 KB, p50 {client[p50_ms]:.0f} ms; "
        "the node dropped {nft[packets]:.0f} packets",
        from_client=answer(Cause.DROPS, half=[Cause.PACKET_LOSS]),
        from_server=answer(Cause.PACKET_LOSS, half=[Cause.NONE]),
    )


@situation
def packets_out_of_order() -> Situation:
    """One packet in ten takes 3 ms longer, and none is lost."""
    return Situation(
        scene=far_apart(2, late_share=0.1, late_ms=3),
        server=server("answer", reply=50_000),
        client=client("ask", connections=4, reply=50_000, gap=20, seconds=6),
        was_made=lambda facts: facts["client"]["count"] > 200,
        truth="{client[count]:.0f} answers of 50 KB, p50 {client[p50_ms]:.1f} ms; "
        "{server_tcp[RetransSegs]:.0f} segments were sent again, none was lost",
        from_client=answer(Cause.NETWORK, Cause.NONE, half=[Cause.PEER]),
        from_server=answer(Cause.NETWORK, Cause.NONE, Cause.CONGESTION, half=[Cause.PACKET_LOSS]),
    )


@situation
def no_request_is_answered_in_time() -> Situation:
    """The server takes 3 s for each answer; its clients give up after 1 s, and try again."""
    return Situation(
        scene=back_to_back,
        server=server("answer", think=3000),
        client=client("ask", connections=32, patience=1000, gap=10, seconds=8),
        was_made=lambda facts: facts["client"]["failed"] >= 150,
        truth="{client[failed]:.0f} requests were given up after 1 s, none was answered",
        # The first request of each connection: it may be a log that wants no answer.
        from_client=answer(Cause.NONE, Cause.PEER, says="no answer when their connection ended"),
        from_server=answer(Cause.APPLICATION),
    )


@situation
def datagrams_overflow_the_pods_queue() -> Situation:
    """The pod's own device sends 2 Mbit/s, and drops what its queue has no room for."""
    return Situation(
        scene=with_slow_client("2mbit", 20_000),
        server=server("datagrams"),
        client=client("blast", size=1000, burst=10, gap=20, seconds=5),
        was_made=lambda facts: facts["tbf"]["drops"] > 100,
        truth="{client[sent]:.0f} datagrams were sent; the queue dropped {tbf[drops]:.0f}",
        from_client=answer(Cause.DROPS, half=[Cause.QDISC_BACKLOG]),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def one_of_four_servers_is_slow() -> Situation:
    """One of four ports answers after 200 ms, the others at once."""
    return Situation(
        scene=back_to_back,
        server=server("several", ports=[7000, 7001, 7002, 7003], think=200, slow=7002),
        client=client(
            "ask", connections=8, ports=[7000, 7001, 7002, 7003], reconnect=True, gap=5, seconds=6
        ),
        was_made=lambda facts: facts["client"]["slow"] >= 20,
        truth="{client[slow]:.0f} of {client[count]:.0f} requests took over 100 ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.APPLICATION),
    )


@situation
def server_without_descriptors() -> Situation:
    """accept() fails with EMFILE: the server has descriptors for a third of its connections."""
    return Situation(
        scene=back_to_back,
        server=server("without_descriptors", descriptors=24),
        client=client("ask", connections=60, gap=20, seconds=6),
        was_made=lambda facts: facts["client"]["slow"] >= 20 and facts["client"]["max_ms"] > 5000,
        truth="{client[count]:.0f} answers; {client[slow]:.0f} of 60 connections had theirs "
        "after {client[max_ms]:.0f} ms, when others had ended",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.ACCEPT_QUEUE, half=[Cause.SLOW_READER]),
    )


@situation
def datagrams_that_are_answered_late() -> Situation:
    """A server of datagrams answers each after 50 ms."""
    return Situation(
        scene=back_to_back,
        server=server("datagrams", think=50),
        client=client("query", port=7000, threads=8, gap=10, patience=5000, seconds=5),
        was_made=lambda facts: facts["client"]["p50_ms"] > 50,
        truth="{client[count]:.0f} replies, p50 {client[p50_ms]:.1f} ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.APPLICATION),
    )


@situation
def server_that_computes() -> Situation:
    """Each answer takes 5 ms of the server's CPU, and it has the CPU to itself."""
    return Situation(
        scene=back_to_back,
        server=server("answer", burn=5),
        client=client("ask", connections=1, gap=5, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 5,
        truth="requests p50 {client[p50_ms]:.1f} ms, of which 5 ms are the server's CPU time",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.APPLICATION),
    )
