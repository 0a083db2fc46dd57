"""Controls: healthy traffic, of which some waits all its life. It is never accused."""

from __future__ import annotations

from tests.live.situations.answers import HEALTHY, HEALTHY_AND_QUIET
from tests.live.situations.scenes import back_to_back
from tests.live.situations.situation import Facts, Situation, client, server, situation

FAST_MS = 5
ANSWERS = "{client[count]:.0f} requests, p99 {client[p99_ms]:.2f} ms, {client[failed]:.0f} failed"


def is_fast(facts: Facts) -> bool:
    """Healthy by the load's own clocks."""
    figures = facts["client"]
    return figures["p99_ms"] < FAST_MS and not figures["failed"] and figures["count"] > 0


@situation
def long_poll_of_30_s() -> Situation:
    """Answers come when there is news: after 1.5 s twice, and after 30 s."""
    return Situation(
        scene=back_to_back,
        server=server("answer", polls=[1500, 1500, 30_000]),
        client=client("ask", connections=10, seconds=7),
        was_made=lambda facts: facts["client"]["pending"] == 10,
        truth="{client[count]:.0f} polls answered, {client[pending]:.0f} not due yet",
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def redis_subscribe() -> Situation:
    """A subscriber of redis waits for messages, of which one comes in half a second."""
    return Situation(
        scene=back_to_back,
        server=server("redis"),
        client=client("subscribe", seconds=5, every=500),
        was_made=lambda facts: facts["client"]["published"] >= 8 and facts["client"]["read"] > 0,
        truth="{client[published]:.0f} messages, {client[read]:.0f} bytes read",
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def server_speaks_first_and_streams() -> Situation:
    """The server sends 2 KB every 10 ms, unasked."""
    return Situation(
        scene=back_to_back,
        server=server("stream", size=2000, gap=10),
        client=client("listen", connections=2, seconds=4),
        was_made=lambda facts: facts["client"]["read"] > 100_000,
        truth="{client[read]:.0f} bytes read",
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


def _both_ways(server_gap_ms: float, client_gap_ms: float) -> Situation:
    return Situation(
        scene=back_to_back,
        server=server("both_ways", size=1000, gap=server_gap_ms),
        client=client("listen", connections=2, send=500, every=client_gap_ms, seconds=6),
        was_made=lambda facts: facts["client"]["read"] > 50_000,
        truth="{client[read]:.0f} bytes read, as many sent",
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


@situation
def both_directions_at_once() -> Situation:
    """Each side sends at the same pace: an answer of some milliseconds, until they drift apart."""
    return _both_ways(server_gap_ms=10, client_gap_ms=10)


@situation
def both_directions_where_the_server_is_faster() -> Situation:
    """Each side sends at its own pace: each message of the client has another one after it."""
    return _both_ways(server_gap_ms=28, client_gap_ms=40)


@situation
def both_directions_where_the_client_is_faster() -> Situation:
    """Each side sends at its own pace: the client often sends twice before it hears anything."""
    return _both_ways(server_gap_ms=92, client_gap_ms=40)


@situation
def pipelining() -> Situation:
    """The client sends eight requests before it reads the answers."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=2, ahead=8, gap=5, seconds=3),
        was_made=is_fast,
        truth=ANSWERS,
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


@situation
def idle_pool() -> Situation:
    """One of ten connections works; the others were used once, and wait to be used again."""
    return Situation(
        scene=back_to_back,
        server=server("answer"),
        client=client("ask", connections=10, first_only=True, gap=5, seconds=3),
        was_made=is_fast,
        truth=ANSWERS,
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


@situation
def half_close() -> Situation:
    """The client closes its direction after the request, and reads the answer to its end."""
    return Situation(
        scene=back_to_back,
        server=server("half_closed"),
        client=client("half_close", seconds=3),
        was_made=is_fast,
        truth=ANSWERS,
        from_client=HEALTHY,
        from_server=HEALTHY,
    )


@situation
def deferred_accept() -> Situation:
    """A connection is accepted with its first request, 400 ms after the client opened it."""
    return Situation(
        scene=back_to_back,
        server=server("answer", deferred=True),
        client=client("ask", connections=4, reconnect=True, hesitation=400, seconds=6),
        was_made=is_fast,
        truth=ANSWERS,
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


@situation
def replies_that_are_not_read() -> Situation:
    """A client sends each question twice and takes the first reply; the other one stays unread."""
    return Situation(
        scene=back_to_back,
        server=server("datagrams"),
        client=client("exchange", threads=30, gap=30_000, times=2, seconds=4),
        was_made=lambda facts: facts["client"]["readable"] == 30,
        truth=ANSWERS + "; {client[readable]:.0f} sockets have another reply, for 4 s",
        from_client=HEALTHY_AND_QUIET,
        from_server=HEALTHY_AND_QUIET,
    )


MIXED = Situation(
    scene=back_to_back,
    server=server("mixed"),
    client=client("mixed", seconds=0.5),
    was_made=is_fast,
    truth=ANSWERS,
    from_client=HEALTHY,
    from_server=HEALTHY,
    name="mixed_healthy_load",
    about="Connections that stay, connections for one request, datagrams: by windows.",
)
