"""Requests that end without an answer, and traffic that is like them and wants none."""

from __future__ import annotations

from tests.live.situations.answers import HEALTHY, HEALTHY_AND_QUIET, Cause, answer
from tests.live.situations.scenes import ABSENT, back_to_back, beside_an_absent_address
from tests.live.situations.situation import Situation, client, server, situation


@situation
def client_gives_up() -> Situation:
    """One request in twenty hangs; its client closes the connection after 500 ms."""
    return Situation(
        scene=back_to_back,
        server=server("answer", request=200, polls=[*[1] * 19, 5000]),
        client=client("ask", request=200, connections=16, patience=500, gap=10, seconds=6),
        was_made=lambda facts: facts["client"]["failed"] >= 32,
        truth="{client[count]:.0f} answers, p99 {client[p99_ms]:.1f} ms; "
        "{client[failed]:.0f} requests were given up after 500 ms",
        from_client=answer(Cause.PEER, says="no answer when this side closed"),
        from_server=answer(Cause.APPLICATION),
    )


@situation
def first_address_without_answer() -> Situation:
    """A name has two addresses; nobody has the first one, and the client waits 250 ms for it."""
    return Situation(
        scene=beside_an_absent_address,
        server=server("answer"),
        client=client("fall_back", absent=ABSENT, after=250, threads=8, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 250,
        truth="{client[count]:.0f} requests, p50 {client[p50_ms]:.0f} ms, of which 250 ms for an "
        "address that does not answer",
        from_client=answer(Cause.CONNECT_FAILURES, says="no answer when this side gave up"),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def name_server_without_replies() -> Situation:
    """A name server receives each query, and replies to none. Each look-up has a socket."""
    return Situation(
        scene=back_to_back,
        server=server("datagrams", port=53, silent=True),
        client=client("look_up", port=53, seconds=6, threads=10, gap=10, patience=1000),
        was_made=lambda facts: facts["client"]["failed"] >= 40,
        truth="{client[failed]:.0f} look-ups failed after 1 s; {server[count]:.0f} queries arrived",
        from_client=answer(Cause.DNS, says="had no reply"),
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def log_shipper_that_reconnects() -> Situation:
    """Chunks of logs want no answer; each connection has three of them."""
    return Situation(
        scene=back_to_back,
        server=server("discard"),
        client=client("ship", connections=4, chunks=3, gap=50, seconds=4),
        was_made=lambda facts: facts["client"]["sent"] > 150,
        truth="{client[sent]:.0f} chunks were sent",
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def log_shipper_that_stays() -> Situation:
    """Chunks of logs want no answer; four connections have one every 20 ms."""
    return Situation(
        scene=back_to_back,
        server=server("discard"),
        client=client("ship", connections=4, chunks=1000, gap=20, seconds=5),
        was_made=lambda facts: facts["client"]["sent"] > 500,
        truth="{client[sent]:.0f} chunks were sent",
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def two_streams_that_cross() -> Situation:
    """Each side sends at a pace of its own, some ten times a second."""
    return Situation(
        scene=back_to_back,
        server=server("both_ways", size=100, gap=130),
        client=client("listen", connections=12, send=80, every=100, seconds=6),
        was_made=lambda facts: facts["client"]["read"] > 20_000,
        truth="{client[read]:.0f} bytes read",
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


@situation
def client_that_pauses_in_its_requests() -> Situation:
    """It writes half of a request, works for 200 ms, and writes the rest."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=8, pieces=2, pause=200, seconds=6),
        was_made=lambda facts: facts["client"]["p50_ms"] > 200,
        truth="{client[count]:.0f} requests, p50 {client[p50_ms]:.1f} ms with its own pause",
        from_client=HEALTHY,
        from_server=HEALTHY,
    )
