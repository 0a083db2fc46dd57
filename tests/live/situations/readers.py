"""Situations of applications: they read late or never, accept late, or answer late."""

from __future__ import annotations

import os

from tests.live.situations.answers import Cause, answer
from tests.live.situations.scenes import back_to_back
from tests.live.situations.situation import Facts, Situation, client, server, situation

WAITS = "requests p50 {client[p50_ms]:.1f} ms, p99 {client[p99_ms]:.1f} ms"
PATH = f"/tmp/latencyprobe-situation-{os.getpid()}"


@situation
def reader_that_never_reads() -> Situation:
    """The server accepts all connections and reads nothing. kafka-node#1293, ray#32537."""
    return Situation(
        scene=back_to_back,
        server=server("never_reads"),
        client=client("ask", connections=20, ahead=10, seconds=6),
        was_made=lambda facts: facts["client"]["pending"] == 20,
        truth="{client[pending]:.0f} times ten requests have waited for {client[oldest_s]:.1f} s",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.SLOW_READER),
    )


@situation
def one_of_four_workers_hung() -> Situation:
    """Four processes with SO_REUSEPORT; one never accepts. Its connections get no answer."""
    return Situation(
        scene=back_to_back,
        server=server("reuseport", workers=4, hung=1),
        client=client("ask", connections=60, gap=50, seconds=6),
        was_made=lambda facts: 4 <= facts["client"]["pending"] <= 40,
        truth="{client[pending]:.0f} of 60 connections have had no answer for "
        "{client[oldest_s]:.1f} s; the others p99 {client[p99_ms]:.1f} ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.ACCEPT_QUEUE, half=[Cause.SLOW_READER]),
    )


@situation
def spliced_reads_3_ms_late() -> Situation:
    """A proxy takes each request by splice(2), 3 ms after it came."""
    return Situation(
        scene=back_to_back,
        server=server("splice", late=3),
        client=client("ask", connections=4, seconds=4),
        was_made=lambda facts: facts["client"]["p50_ms"] > 2.9,
        truth=WAITS + ", of which the proxy slept 3 ms before each read",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.SLOW_READER),
    )


def overflows(facts: Facts) -> bool:
    return facts["server_tcp"]["ListenOverflows"] >= 5


@situation
def accept_loop_of_20_ms_with_backlog_1() -> Situation:
    """The server sleeps 20 ms before each accept(), and its accept queue has room for two."""
    return Situation(
        scene=back_to_back,
        server=server("answer", accept=20, backlog=1),
        client=client("ask", connections=8, reconnect=True, gap=1, seconds=7),
        was_made=overflows,
        truth="{server_tcp[ListenOverflows]:.0f} overflows of the accept queue; "
        "connects p99 {client[connect_p99_ms]:.0f} ms, requests p50 {client[p50_ms]:.0f} ms",
        from_client=answer(
            Cause.ACCEPT_QUEUE, Cause.PEER, Cause.PACKET_LOSS, half=[Cause.CONNECT_FAILURES]
        ),
        from_server=answer(Cause.ACCEPT_QUEUE),
    )


@situation
def udp_overflow() -> Situation:
    """Datagrams come four times as fast as the server reads them; nobody waits for an answer."""
    return Situation(
        scene=back_to_back,
        server=server("datagrams", silent=True, late=2, receive_buffer=8192),
        client=client("blast", seconds=4, size=500, burst=20, gap=10),
        was_made=lambda facts: facts["client"]["sent"] > 2 * facts["server"]["count"],
        truth="{client[sent]:.0f} datagrams sent, {server[count]:.0f} read",
        from_client=answer(Cause.NONE, half=[Cause.INSUFFICIENT_DATA]),
        from_server=answer(
            Cause.DROPS, Cause.SLOW_READER, says="receiveQueueOverflows|RcvbufErrors|RCVBUF"
        ),
    )


@situation
def udp_server_that_hangs() -> Situation:
    """The server reads datagrams for a second or two, and then no more; few come after that."""
    return Situation(
        scene=back_to_back,
        server=server("datagrams", hangs_after=800),
        client=client("exchange", threads=8, gap=10, seconds=7),
        was_made=lambda facts: facts["client"]["pending"] == 8 and facts["client"]["oldest_s"] > 3,
        truth="{client[count]:.0f} datagrams had a reply, p99 {client[p99_ms]:.1f} ms; then the "
        "server hung, and {client[pending]:.0f} have waited for {client[oldest_s]:.1f} s",
        from_client=answer(Cause.NONE, says="8 unanswered queries"),
        from_server=answer(Cause.SLOW_READER),
    )


@situation
def unix_sockets() -> Situation:
    """All of the traffic is over a UNIX socket, of which no stage is measured."""
    unseen = answer(Cause.INSUFFICIENT_DATA, says="UNIX")
    return Situation(
        scene=back_to_back,
        server=server("unix", path=PATH, think=5),
        client=client("ask_over_unix", path=PATH, seconds=4),
        was_made=lambda facts: facts["client"]["count"] > 100,
        truth="{client[count]:.0f} requests over a UNIX socket, p50 {client[p50_ms]:.1f} ms",
        from_client=unseen,
        from_server=unseen,
    )


@situation
def io_uring() -> Situation:
    """The server receives and sends by io_uring, and needs 20 ms for an answer."""
    return Situation(
        scene=back_to_back,
        server=server("uring", think=20),
        client=client("ask", connections=4, seconds=5),
        was_made=lambda facts: facts["client"]["p50_ms"] > 19,
        truth=WAITS + "; the application takes 20 ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.APPLICATION),
    )


@situation
def proxy_and_application_in_one_pod() -> Situation:
    """A proxy forwards over the pod's loopback to an application that needs 20 ms."""
    return Situation(
        scene=back_to_back,
        server=server("proxy", think=20),
        client=client("ask", connections=4, seconds=5),
        was_made=lambda facts: facts["client"]["p50_ms"] > 19,
        truth=WAITS + "; the application behind the proxy takes 20 ms",
        from_client=answer(Cause.PEER),
        from_server=answer(Cause.APPLICATION),
    )
