"""Connections whose first byte comes late, or whose end does."""

from __future__ import annotations

from tests.live.situations.answers import Answer, Cause, answer
from tests.live.situations.scenes import back_to_back
from tests.live.situations.situation import Situation, client, server, situation

LATE_MS = 500
TRUTH = "{client[count]:.0f} sessions, p50 {client[p50_ms]:.0f} ms to their end"


def said(what: str) -> Answer:
    """No accusation, and not "Nothing to do"."""
    return answer(Cause.NONE, Cause.INSUFFICIENT_DATA, says=what)


@situation
def greeting_after_500_ms() -> Situation:
    """A server of mail or of SQL, which looks up its client's name before it speaks."""
    return Situation(
        scene=back_to_back,
        server=server("session", greeting=LATE_MS),
        client=client("session", threads=8, seconds=5, is_greeted=True),
        was_made=lambda facts: facts["client"]["p50_ms"] > LATE_MS,
        truth=TRUTH,
        from_client=said("no byte until .* after the handshake"),
        from_server=said("no byte until .* after the handshake"),
    )


@situation
def end_after_500_ms() -> Situation:
    """An answer ends with its connection, and the server closes late."""
    return Situation(
        scene=back_to_back,
        server=server("session", linger=LATE_MS),
        client=client("session", threads=8, seconds=5),
        was_made=lambda facts: facts["client"]["p50_ms"] > LATE_MS,
        truth=TRUTH,
        from_client=said("ended .* after their last byte"),
        from_server=said("ended .* after their last byte"),
    )
