"""Waiting that has not ended: that of a target's sockets at the moment of a reading.

Stages and counters are of things that ended. A reader that hangs ends nothing, and shows here.
The figures are a *snapshot*: those of a later reading replace those of an earlier one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_count, of_time
from latencyprobe.domain.histogram import LARGEST_SUM
from latencyprobe.domain.stages import Module

# Older waiting counts as this old: an idle subscription may wait for days.
LONGEST_PENDING_NS = 600 * 10**9


@dataclass(frozen=True, slots=True)
class PendingKind:
    """A kind of waiting. `one`, `several`: the nouns that `count` counts.

    `needs_others`: a single socket does not show it, only several together.
    """

    name: str
    module: Module
    one: str
    several: str
    meaning: str
    needs_others: bool = False

    @property
    def macro(self) -> str:
        """The name of the kind's index in the C sources."""
        snake = "".join("_" + c if c.isupper() else c for c in self.name)
        return "PENDING_" + snake.upper()


PENDING_KINDS: tuple[PendingKind, ...] = (
    PendingKind(
        "unreadSegments",
        Module.RX,
        "unread segment",
        "unread segments",
        "segments, and datagrams of a server, that the application has not read",
    ),
    PendingKind(
        "unsentWrites",
        Module.TX,
        "unsent write",
        "unsent writes",
        "writes with bytes that TCP has not sent yet",
    ),
    PendingKind(
        "unansweredRequests",
        Module.TCP,
        "unanswered request",
        "unanswered requests",
        "requests of a client without a byte of the reply",
    ),
    PendingKind(
        "unansweredQueries",
        Module.RX,
        "unanswered query",
        "unanswered queries",
        "datagrams of a client to a peer that replies, without a reply",
    ),
    PendingKind(
        "requestsInService",
        Module.TCP,
        "request in service",
        "requests in service",
        "requests that a server has read, without a byte of its answer",
    ),
    PendingKind(
        "missingAnswers",
        Module.TCP,
        "missing answer",
        "missing answers",
        "unanswered requests that are late by the past of their connection or of their peer",
    ),
    PendingKind(
        "stuckRequests",
        Module.TCP,
        "stuck request",
        "stuck requests",
        "requests in service that are late by the past of their connection or of their port",
    ),
    PendingKind(
        "firstAnswers",
        Module.TCP,
        "request without any answer from that peer so far",
        "requests without any answer from that peer so far",
        "unanswered requests to peers that have not answered on any connection",
        needs_others=True,
    ),
    PendingKind(
        "firstRequestsInService",
        Module.TCP,
        "request in service without any answer on that port so far",
        "requests in service without any answer on that port so far",
        "requests in service on ports without an answer on any connection",
        needs_others=True,
    ),
    PendingKind(
        "unansweredConnects",
        Module.TCP,
        "unanswered connect",
        "unanswered connects",
        "connects whose SYN has no answer",
    ),
    PendingKind(
        "unacceptedConnections",
        Module.TCP,
        "unaccepted connection",
        "unaccepted connections",
        "established connections that wait for accept()",
    ),
    PendingKind(
        "unacknowledgedRetransmits",
        Module.TCP,
        "connection with unacknowledged retransmits",
        "connections with unacknowledged retransmits",
        "connections whose retransmission timer has expired, without an ACK since",
    ),
    PendingKind(
        "unacknowledgedDrops",
        Module.TCP,
        "connection with unacknowledged segments that this node dropped",
        "connections with unacknowledged segments that this node dropped",
        "connections as of unacknowledgedRetransmits, of which this node has dropped a segment",
    ),
)
# Those that a program finds, socket by socket.
KINDS_OF_SOCKETS = tuple(kind for kind in PENDING_KINDS if not kind.needs_others)
PENDING_BY_NAME: Mapping[str, PendingKind] = {kind.name: kind for kind in PENDING_KINDS}


@dataclass(frozen=True, slots=True)
class Pending:
    """The waiting of one kind. `count` is at least 1 if something waits.

    `sockets`: those that wait. `bytes`: of their data; 0 for kinds without. `oldest_ns`: the
    longest known age; 0 if no age is known. `waiting_ns`: the sum of all known ages.
    """

    count: int
    sockets: int = 0
    bytes: int = 0
    oldest_ns: int = 0
    waiting_ns: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.sockets, self.bytes, self.oldest_ns, self.waiting_ns) < 0:
            raise ValueError("negative figure: all figures of pending waits must be 0 or more")

    def __add__(self, other: Pending) -> Pending:
        """Add what waits elsewhere at the same moment."""
        return Pending(
            min(self.count + other.count, LARGEST_SUM),
            min(self.sockets + other.sockets, LARGEST_SUM),
            min(self.bytes + other.bytes, LARGEST_SUM),
            max(self.oldest_ns, other.oldest_ns),
            min(self.waiting_ns + other.waiting_ns, LARGEST_SUM),
        )


def describe(kind: PendingKind, pending: Pending) -> str:
    """Return the figures as a text: `200 unread segments in 20 sockets, the oldest for 6.1s`."""
    count, sockets = pending.count, pending.sockets
    text = f"{count:,} {kind.one if count == 1 else kind.several}"
    if sockets and sockets != count:
        text += f" in {sockets:,} socket{'' if sockets == 1 else 's'}"
    if not pending.oldest_ns:
        return of_count(count, text)
    age = format_ns(pending.oldest_ns)
    at_least = "at least " if pending.oldest_ns == LONGEST_PENDING_NS else ""
    text += f"{', the oldest' if count > 1 else ''} for {at_least}{age}"
    return of_time(pending.oldest_ns, text)


def joint_pending(
    one: Mapping[str, Pending] | None, other: Mapping[str, Pending] | None
) -> Mapping[str, Pending] | None:
    """Add what waits at two places at the same moment, by kind. None: it was not read."""
    if one is None or other is None:
        return other if one is None else one
    joint = dict(one)
    for name, pending in other.items():
        joint[name] = joint[name] + pending if name in joint else pending
    return joint


def pending_of(pending: Mapping[str, Pending], modules: Container[Module]) -> dict[str, Pending]:
    """Return the kinds of these modules, in the order of the table; no empty ones."""
    return {
        kind.name: pending[kind.name]
        for kind in PENDING_KINDS
        if kind.module in modules and kind.name in pending and pending[kind.name].count
    }
