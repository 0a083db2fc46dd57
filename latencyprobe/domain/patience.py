"""Patience: whether an answer that has not come is missing, or is not due yet.

A long poll, a subscription and a watch wait all their life, and are healthy. Their bytes are like
those of a request to a peer that hangs. The *past* differs: the time that answers took so far, on
the same connection, or on other connections to the same peer. A server's peers are all clients of
one local port.

- A request is *late* if it waits longer than its patience: see `patience_ns()`. The programs in the
  kernel judge it by the past of its own connection, since they see each of them.
- On a connection without any answer, the past of the peer's other connections counts.
- Without any answer from that peer, whether the first one is due cannot be known.
- Nothing is judged in the first second.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from latencyprobe.domain.histogram import LARGEST_SUM
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.pending import PENDING_BY_NAME, Pending, describe
from latencyprobe.domain.serialisation import written

# A request waits for too long after ten times the slowest answer so far, and a second.
PATIENCE_FACTOR = 10
LEAST_PATIENCE_NS = 10**9
# A peer that has held an answer back for so long may do so again, until usual time-outs of proxies.
HELD_ANSWER_NS = 10**9
HELD_PATIENCE_NS = 60 * 10**9
# Fewer answers are no past: with random gaps between them, the next one takes ten times as long as
# the slowest of three in one case of a thousand, of one in one case of eleven.
ANSWERS_OF_A_PAST = 3
# Requests on connections without any answer are counted by age: from 1 s, 2 s, 4 s and so on.
PATIENCE_STEPS = 10
# Of one target or pod.
MAX_REPORTED_PEERS = 8

MISSING_ANSWERS, STUCK_REQUESTS = "missingAnswers", "stuckRequests"
FIRST_ANSWERS, FIRST_REQUESTS = "firstAnswers", "firstRequestsInService"
CONNECTS, RESENT = "unansweredConnects", "unacknowledgedRetransmits"
# The kinds with peers, the surest first.
KINDS_OF_PEERS = (MISSING_ANSWERS, CONNECTS, RESENT, FIRST_ANSWERS)


class Role(IntEnum):
    """The side of a connection: `enum role` of the C sources."""

    CLIENT = 1
    SERVER = 2


@dataclass(frozen=True, slots=True)
class Waits:
    """Requests that wait: their number, the age of the oldest, and the sum of all ages."""

    count: int = 0
    oldest_ns: int = 0
    waiting_ns: int = 0

    def __add__(self, other: Waits) -> Waits:
        return Waits(
            self.count + other.count,
            max(self.oldest_ns, other.oldest_ns),
            self.waiting_ns + other.waiting_ns,
        )

    def as_pending(self) -> Pending:
        """Return the same as figures of a pending kind: one request waits per connection."""
        return Pending(self.count, self.count, oldest_ns=self.oldest_ns, waiting_ns=self.waiting_ns)


NO_WAITS = Waits()


@dataclass(frozen=True, slots=True)
class PeerTurns:
    """The past and the present of the connections to one peer.

    `peer`: None for the clients of a local port. `answered`: connections that had an answer.
    `answers`: the sum of their answers, at most 15 of each. `late`: those of `waiting` that are
    late by the past of their own connection. `first`: those that wait for the first answer of their
    connection. `connects`, `resent`: connects without an answer, and retransmits without an ACK.
    `first_from`: number and sum of those among `first` with at least 1 s, 2 s, 4 s …
    """

    role: Role
    peer: Endpoint | None
    answered: int = 0
    answers: int = 0
    slowest_ns: int = 0
    waiting: Waits = NO_WAITS
    late: Waits = NO_WAITS
    first: Waits = NO_WAITS
    first_from: Sequence[tuple[int, int]] = ((0, 0),) * PATIENCE_STEPS
    connects: Waits = NO_WAITS
    resent: Waits = NO_WAITS

    @property
    def has_past(self) -> bool:
        """True if its answers show how long one may take."""
        return self.answers >= ANSWERS_OF_A_PAST

    def after(self, past: PeerTurns) -> PeerTurns:
        """Return the same with an earlier past, also of connections that were closed since."""
        return replace(
            self,
            answered=max(self.answered, past.answered),
            answers=max(self.answers, past.answers),
            slowest_ns=max(self.slowest_ns, past.slowest_ns),
        )

    @property
    def first_that_are_late(self) -> Waits:
        """Those that are late by the past of the peer's other connections."""
        if not self.has_past:
            return NO_WAITS
        return self._first_from(first_step(patience_ns(self.slowest_ns)))

    @property
    def unknown(self) -> Waits:
        """Those that wait for the first answer of any connection to this peer, for a second."""
        return NO_WAITS if self.answered else self._first_from(0)

    def _first_from(self, step: int) -> Waits:
        count, waiting_ns = self.first_from[step] if step < len(self.first_from) else (0, 0)
        return Waits(count, self.first.oldest_ns, waiting_ns) if count else NO_WAITS


@dataclass(frozen=True, slots=True)
class Peer:
    """The waits of one kind for one peer. `name`: empty if it is not known."""

    address: Endpoint = field(metadata=written(as_text=True))
    kind: str
    count: int
    oldest_ns: int
    waiting_ns: int
    name: str = field(default="", metadata=written(absent_if_empty=True))

    @property
    def order(self) -> tuple[int, int, str]:
        """The sort key: the surest kind first, then the longest waiting."""
        return KINDS_OF_PEERS.index(self.kind), -self.waiting_ns, str(self.address)

    def __add__(self, other: Peer) -> Peer:
        """Add what waits for the same peer elsewhere at the same moment."""
        return Peer(
            self.address,
            self.kind,
            min(self.count + other.count, LARGEST_SUM),
            max(self.oldest_ns, other.oldest_ns),
            min(self.waiting_ns + other.waiting_ns, LARGEST_SUM),
        )


def patience_ns(slowest_ns: int) -> int:
    """Return the age from which an answer is late, by the slowest answer so far."""
    least_ns = LEAST_PATIENCE_NS if slowest_ns < HELD_ANSWER_NS else HELD_PATIENCE_NS
    return max(least_ns, PATIENCE_FACTOR * slowest_ns)


def first_step(age_ns: int) -> int:
    """Return the first of the steps of ages that is at least this age."""
    step = 0
    while step < PATIENCE_STEPS and LEAST_PATIENCE_NS << step < age_ns:
        step += 1
    return step


def waits_by_others(turns: Iterable[PeerTurns]) -> dict[str, Pending]:
    """Return what the past of other connections says of first requests, by pending kind.

    What is late by its own connection's past is not in it.
    """
    sums: dict[str, Waits] = {}
    for each in turns:
        is_client = each.role is Role.CLIENT
        late, unknown = (
            (MISSING_ANSWERS, FIRST_ANSWERS) if is_client else (STUCK_REQUESTS, FIRST_REQUESTS)
        )
        for kind, waits in ((late, each.first_that_are_late), (unknown, each.unknown)):
            sums[kind] = sums.get(kind, NO_WAITS) + waits
    return {kind: waits.as_pending() for kind, waits in sums.items() if waits.count}


def waiting_peers(turns: Iterable[PeerTurns]) -> tuple[Peer, ...]:
    """Return the peers whose answers are missing, and those that do not even acknowledge.

    The worst come first, at most MAX_REPORTED_PEERS.
    """
    return _worst(
        Peer(each.peer, kind, waits.count, waits.oldest_ns, waits.waiting_ns)
        for each in turns
        if each.peer is not None
        for kind, waits in (
            (MISSING_ANSWERS, each.late + each.first_that_are_late),
            (CONNECTS, each.connects),
            (RESENT, each.resent),
            (FIRST_ANSWERS, each.unknown),
        )
        if waits.count
    )


def joint_peers(one: Iterable[Peer], other: Iterable[Peer]) -> tuple[Peer, ...]:
    """Add up the peers of two places at the same moment."""
    joint: dict[tuple[Endpoint, str], Peer] = {}
    for peers in (one, other):
        for peer in peers:
            key = (peer.address, peer.kind)
            joint[key] = joint[key] + peer if key in joint else peer
    return _worst(joint.values())


def peers_of(peers: Sequence[Peer], pending: Mapping[str, Pending] | None) -> tuple[Peer, ...]:
    """Return the peers of the kinds that are pending."""
    return tuple(peer for peer in peers if peer.kind in (pending or {}))


def describe_peer(peer: Peer) -> str:
    """Return the figures as a text: `15 missing answers, the oldest for 5.2s`."""
    waits = Waits(peer.count, peer.oldest_ns, peer.waiting_ns)
    return describe(PENDING_BY_NAME[peer.kind], waits.as_pending())


def _worst(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    return tuple(heapq.nsmallest(MAX_REPORTED_PEERS, peers, key=lambda peer: peer.order))
