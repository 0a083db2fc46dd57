"""Waiting by cause: where a target's requests and packets lost time in a window, in seconds.

Each second is charged once. A wait for an answer includes those for the network and for losses. A
wait for a reader includes those for the accept queue and for a CPU. They are subtracted from it.
Waiting that has not ended counts with its age.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from latencyprobe.domain.attention import (
    ATTENTION_MEAN_NS,
    LONG_ANSWER_NS,
    MIN_SAMPLES,
    NO_FIRST_ANSWER_NS,
    Attention,
)
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_count, of_share, of_time
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.losses import Losses
from latencyprobe.domain.measurement import Measurement, NodeMeasurement, StageMeasurement
from latencyprobe.domain.name_servers import NameServers
from latencyprobe.domain.patience import FIRST_ANSWERS, MISSING_ANSWERS, STUCK_REQUESTS
from latencyprobe.domain.processors import CPUDelay, cpu_delay
from latencyprobe.domain.round_trips import RoundTrips
from latencyprobe.domain.sending import Sending
from latencyprobe.domain.stages import parts_of
from latencyprobe.domain.wait import (
    FAILURE_NS,
    MANY_FAILURES,
    Wait,
    are_many,
    pending_of_kind,
    pending_wait,
)

TOTALS = ("rx.total", "tx.total")
_PATH = {
    "rx.softirq": Bottleneck.SOFTIRQ_BACKLOG,
    "rx.host": Bottleneck.HOST_PATH,
    "tx.host": Bottleneck.HOST_PATH,
    "tx.qdisc": Bottleneck.QDISC_BACKLOG,
    "tx.driver": Bottleneck.DRIVER,
}
_UNACCEPTED = "unacceptedConnections"
# Where a segment waits after TCP has sent it.
_QUEUED = ("tx.host", "tx.qdisc", "tx.driver")
# The kernel's own work on each packet: no packet waits for another.
_WAITS = frozenset({*_PATH, "rx.socket", "tx.socket"})
_WORK = tuple(part.name for total in TOTALS for part in parts_of(total) if part.name not in _WAITS)
# An answer of which as much is the target's own as is its peers' is the target's: a proxy before an
# application in the same pod waits for itself.
_AS_MUCH = 0.9
# The rest of an answer's time is the peer's only if it is more than noise beside the round trips.
_LEAST_OF_PEER = 0.40
# Two buckets of a histogram.
_ABOUT_EQUAL = 1.2
# Stages in which threads wait for a CPU, among others. Less of it is not worth a word.
_OF_THREADS = ("rx.socket", "rx.wakeup", "app.response", "tcp.accept")
_LEAST_OF_CPU = 0.10
# An answer with as many requests to peers takes long because of their number.
_MANY_REQUESTS = 10


def waits_of(attention: Attention, node: NodeMeasurement) -> tuple[Wait, ...]:
    """Return all waiting of a target in a window, the longest first; each cause once.

    `attention`: its measurement, and the bounds for it.
    """
    return joined(_Ledger(attention.measurement, node, attention).waits())


def joined(waits: Iterable[Wait]) -> tuple[Wait, ...]:
    """Add up the waits of each cause, longest first; those of the distance stay apart."""
    by_cause: dict[tuple[Bottleneck, bool], list[Wait]] = {}
    for wait in waits:
        if wait.ns or wait.is_noteworthy:
            by_cause.setdefault((wait.cause, wait.is_distance), []).append(wait)
    sums = [_sum(sorted(each, key=lambda wait: -wait.ns)) for each in by_cause.values()]
    return tuple(sorted(sums, key=lambda wait: -wait.ns))


def _sum(waits: list[Wait]) -> Wait:
    """Return the sum of the waits of one cause, of which the first is the longest."""
    first, *others = waits
    if not others:
        return first
    whole_ns = sum(wait.ns for wait in waits)
    # A small part of the waiting may be for another peer than the rest.
    culprits = (wait.culprit for wait in waits if wait.culprit and 2 * wait.ns >= whole_ns)
    return Wait(
        first.cause,
        whole_ns,
        any(wait.is_noteworthy for wait in waits),
        first.stage,
        tuple(dict.fromkeys(figure for wait in waits for figure in wait.figures)),
        first.is_distance,
        next(culprits, ""),
    )


@dataclass
class _Ledger:
    """The account of one target. Parts that others are charged with are made once.

    Large, because each kind of waiting is a method.
    """

    measurement: Measurement
    node: NodeMeasurement
    attention: Attention

    def waits(self) -> Iterator[Wait]:
        """Yield all waiting; the same cause may come several times."""
        yield from self._to_be_read()
        yield from self._on_the_path()
        yield from self._sending.waits()
        yield from self._to_be_accepted()
        yield from self._for_answers()
        yield from self._losses.waits()
        yield from self._trips.waits()
        yield self._for_a_cpu()

    @cached_property
    def _cpu(self) -> CPUDelay:
        return cpu_delay(self.measurement, self.node)

    @cached_property
    def _losses(self) -> Losses:
        return Losses(self.measurement, self.attention)

    @property
    def _sending(self) -> Sending:
        lost_ns = self._losses.open_ns
        return Sending(self.measurement, self.attention, self._congestion, lost_ns)

    @cached_property
    def _name_servers(self) -> NameServers:
        return NameServers(self.measurement, self._losses.dropped_ns)

    @cached_property
    def _trips(self) -> RoundTrips:
        received, sent = (self._histogram(total).mean_ns for total in TOTALS)
        stacks_ns = received + sent if received and sent else 0
        queued_ns = sum(self._histogram(stage).mean_ns for stage in _QUEUED)
        bounds = self.attention.bounds("tcp.rtt")
        return RoundTrips(self.measurement, stacks_ns, queued_ns, bounds)

    @property
    def _congestion(self) -> Bottleneck:
        """The cause of a small window: this node's queue, if round trips consist mostly of it."""
        longest = max(_QUEUED, key=lambda stage: self._histogram(stage).mean_ns)
        queued_ns = self._histogram(longest).mean_ns
        trip_ns = queued_ns + self._trips.mean_ns
        is_own = queued_ns >= ATTENTION_MEAN_NS and 2 * queued_ns >= trip_ns
        return _PATH[longest] if is_own else Bottleneck.CONGESTION

    def _histogram(self, stage: str) -> Histogram:
        return self.measurement.stage(stage).histogram

    def _is_noteworthy(self, stage: str) -> bool:
        """Return True if the waits in a stage are worth a person's attention."""
        return self.attention.bounds(stage).are_exceeded(self._histogram(stage))

    def _pending(self, kind: str, cause: Bottleneck, stage: str) -> Wait:
        return pending_wait(self.measurement, kind, cause, stage, self.attention.bounds(stage))

    def _time_ns(self, stage: str) -> int:
        """Return the time in a stage, of all packets that its samples represent."""
        measured = self.measurement.stage(stage)
        return round(measured.histogram.sum_ns / measured.sampling_ratio)

    def _number(self, stage: str) -> int:
        """Return the number of packets or answers that a stage's samples represent."""
        measured = self.measurement.stage(stage)
        return round(measured.histogram.count / measured.sampling_ratio)

    @cached_property
    def _reading_ns(self) -> int:
        """The time in the socket, without that before accept(): there is no reader before."""
        return max(self._time_ns("rx.socket") - self._time_ns("tcp.accept"), 0)

    @cached_property
    def _reading_cpu_ns(self) -> int:
        if self._histogram("rx.wakeup").count:
            return min(self._time_ns("rx.wakeup"), self._reading_ns)
        return self._cpu.part_of(self._number("rx.socket"), self._reading_ns)

    def _to_be_read(self) -> Iterator[Wait]:
        figures: tuple[str, ...] = ()
        if self._histogram("rx.wakeup").count and self._reading_ns:
            part = self._reading_cpu_ns / self._reading_ns
            text = f"rx.wakeup, the reader waiting for a CPU, is {part:.0%} of it"
            figures = (of_share(part, text),)
        own_ns = self._reading_ns - self._reading_cpu_ns
        is_noteworthy = self._is_noteworthy("rx.socket")
        yield Wait(Bottleneck.SLOW_READER, own_ns, is_noteworthy, "rx.socket", figures)
        unread = self._pending("unreadSegments", Bottleneck.SLOW_READER, "rx.socket")
        # There is no reader before accept().
        left_ns = max(unread.ns - pending_of_kind(self.measurement, _UNACCEPTED).waiting_ns, 0)
        yield unread._replace(ns=left_ns, is_noteworthy=unread.is_noteworthy and left_ns > 0)

    def _on_the_path(self) -> Iterator[Wait]:
        for stage, cause in _PATH.items():
            yield Wait(cause, self._time_ns(stage), self._is_noteworthy(stage), stage)
        for stage in _WORK:
            yield Wait(Bottleneck.NONE, self._time_ns(stage), False, stage)

    def _to_be_accepted(self) -> Iterator[Wait]:
        overflows = self._losses.accept_queue_overflows
        own_ns = self._time_ns("tcp.accept") - self._accepting_cpu_ns
        is_noteworthy = self._is_noteworthy("tcp.accept")
        yield Wait(Bottleneck.ACCEPT_QUEUE, own_ns, is_noteworthy, "tcp.accept")
        yield overflows
        yield self._pending(_UNACCEPTED, Bottleneck.ACCEPT_QUEUE, "tcp.accept")

    @property
    def _accepting_cpu_ns(self) -> int:
        accepted = self.measurement.stage("tcp.accept")
        return self._cpu.part_of_each(accepted, self._time_ns("tcp.accept"))

    def _for_answers(self) -> Iterator[Wait]:
        own, peers = self._own_answers(), self._peers_answers()
        if own.is_noteworthy and own.ns >= _AS_MUCH * peers.ns:
            peers = Wait(peers.cause, min(peers.ns, own.ns), False, peers.stage)
        yield own
        yield peers
        yield self._replies()
        yield self._name_servers.wait()
        stuck = self._pending(STUCK_REQUESTS, Bottleneck.APPLICATION, "app.response")
        yield stuck._replace(is_noteworthy=self._are_late(STUCK_REQUESTS, "app.response"))
        yield self._missing_answers()
        yield self._abandoned
        yield self._slow_connects

    def _own_answers(self) -> Wait:
        answers = self.measurement.stage("app.response")
        own_ns = self._answering_ns - self._answering_cpu_ns
        is_noteworthy = _are_turns(answers) and self._is_noteworthy("app.response")
        figures = (*self._requests_of_each, *_alike(answers)) if is_noteworthy else ()
        return Wait(Bottleneck.APPLICATION, own_ns, is_noteworthy, "app.response", figures)

    @cached_property
    def _requests_of_each(self) -> tuple[str, ...]:
        """The number of requests to peers for each answer, if that makes it long; else nothing.

        Each of them is quick: no peer is slow.
        """
        answers, requests = self._number("app.response"), self._number("peer.response")
        are_many = answers and requests >= _MANY_REQUESTS * answers
        are_most = self._peer_ns >= _LEAST_OF_PEER * self._time_ns("app.response")
        if not (are_many and are_most) or self._peers_answers().is_noteworthy:
            return ()
        each = format_ns(self._histogram("peer.response").mean_ns)
        number = requests // answers
        return (of_count(number, f"{number:,} requests to peers for each answer, {each} each"),)

    @cached_property
    def _answering_ns(self) -> int:
        """The time of the target's own answers, without its waits for its peers."""
        of_peers_ns = self._histogram("udp.response").sum_ns + self._abandoned.ns
        of_peers_ns += self._losses.abandoned_connects_ns
        if self._slow_connects.is_noteworthy:
            of_peers_ns += self._slow_connects.ns
        if self._histogram("app.response").max_ns >= FAILURE_NS:  # one waited for a resolver
            of_peers_ns += self._name_servers.waited_ns
        if not self._requests_of_each:
            of_peers_ns += self._peer_ns
        return max(self._time_ns("app.response") - of_peers_ns, 0)

    @property
    def _answering_cpu_ns(self) -> int:
        answers = self.measurement.stage("app.response")
        return self._cpu.part_of_answers(answers, self._answering_ns)

    @property
    def _slow_connects_ns(self) -> int:
        """The time by which connects were longer than the network and this node explain.

        They are counted when their connections end, so the connects of the window bound them.
        """
        counters, trips = self.measurement.counters, self._trips
        of_path_ns = counters.get("slowConnects", 0) * (trips.growth_ns + trips.queued_ns)
        left_ns = counters.get("slowConnectsNs", 0) - of_path_ns
        return max(min(left_ns, self._time_ns("tcp.connect")), 0)

    @cached_property
    def _slow_connects(self) -> Wait:
        """Return the wait for the answers to SYNs: no SYN was lost, and the path is shorter."""
        count, ns = self.measurement.counters.get("slowConnects", 0), self._slow_connects_ns
        among = max(self._number("tcp.connect"), count)
        is_noteworthy = self.attention.bounds("tcp.connect").add_up(ns, count, among)
        is_noteworthy &= count >= MANY_FAILURES
        if not is_noteworthy:
            return Wait(Bottleneck.PEER, ns, False, "tcp.connect")
        longer = format_ns(ns // count)
        text = f"{count:,} connects took {longer} longer than a round trip: SYNs are answered late"
        return Wait(Bottleneck.PEER, ns, True, "tcp.connect", (of_time(ns // count, text),))

    @property
    def _peer_ns(self) -> int:
        answers = self.measurement.stage("peer.response")
        return self._time_ns("peer.response") if _are_turns(answers) else 0

    def _peers_answers(self) -> Wait:
        answers = self.measurement.stage("peer.response")
        waited_ns, trip_ns = self._time_ns("peer.response"), self._trips.mean_ns
        charged_ns = self._number("peer.response") * trip_ns + self._losses.recovery_ns
        charged_ns += self.measurement.counters.get("heldBackByPeerNs", 0)
        charged_ns += self.measurement.counters.get("heldBackNs", 0)
        left_ns = max(waited_ns - charged_ns, 0)
        is_noteworthy = _are_turns(answers) and self._is_noteworthy("peer.response")
        is_noteworthy &= left_ns >= _LEAST_OF_PEER * waited_ns
        if not is_noteworthy:
            return Wait(Bottleneck.PEER, left_ns, False, "peer.response")
        text = f"the network accounts for about {format_ns(trip_ns)} of each (tcp.rtt)"
        figure = of_time(trip_ns, text)
        figures = (figure, *self._own_part_is_unknown(), *_alike(answers))
        return Wait(Bottleneck.PEER, left_ns, True, "peer.response", figures)

    def _own_part_is_unknown(self) -> Iterator[str]:
        """Yield a figure if the waits for peers exceed the answers: not all can lie in them."""
        answers = self.measurement.stage("app.response")
        is_slow = _are_turns(answers) and self._is_noteworthy("app.response")
        if is_slow and self._time_ns("peer.response") > self._time_ns("app.response"):
            mean_ns = answers.histogram.mean_ns
            yield of_time(
                mean_ns,
                f"its own answers take {format_ns(mean_ns)} (app.response), of which its own part "
                "is not known: it waits for several peers at once, or apart from answers",
            )

    def _replies(self) -> Wait:
        """Return the wait for replies to datagrams, without those that this node dropped."""
        waited = self._histogram("udp.response")
        left_ns = max(waited.sum_ns - self._losses.dropped_ns, 0)
        is_noteworthy = waited.count >= MIN_SAMPLES and self._is_noteworthy("udp.response")
        is_noteworthy &= left_ns >= _LEAST_OF_PEER * waited.sum_ns
        of_names_ns = self.measurement.counters.get("dnsResponseNs", 0)
        cause = Bottleneck.DNS if 2 * of_names_ns > waited.sum_ns else Bottleneck.PEER
        return Wait(cause, left_ns, is_noteworthy, "udp.response")

    def _missing_answers(self) -> Wait:
        """Return the wait for answers that are missing, but not for those that losses delay.

        A single request is no accusation: it may be a frame of HTTP/2 that wants no answer.
        """
        kind = (
            MISSING_ANSWERS
            if pending_of_kind(self.measurement, MISSING_ANSWERS).count
            else FIRST_ANSWERS
        )
        missing = pending_wait(self.measurement, kind, Bottleneck.PEER, "peer.response")
        left_ns = max(missing.ns - self._losses.open_ns, 0)
        if not self._are_missing(kind):
            left_ns = 0
        return missing._replace(ns=left_ns, is_noteworthy=left_ns > 0)

    def _are_missing(self, kind: str) -> bool:
        """Return True if several answers are late; first ones only if there was none at all."""
        if kind == MISSING_ANSWERS:
            return self._are_late(kind, "peer.response")
        oldest_ns = pending_of_kind(self.measurement, kind).oldest_ns
        is_without_any = not self._histogram("peer.response").count
        is_too_long = oldest_ns >= NO_FIRST_ANSWER_NS
        return is_without_any and is_too_long and self._are_late(kind, "peer.response")

    def _are_late(self, kind: str, stage: str) -> bool:
        """Return True if several requests are late, also by the objectives of their stage."""
        pending = pending_of_kind(self.measurement, kind)
        return pending.count > 1 and not self.attention.bounds(stage).allow(pending.oldest_ns)

    @cached_property
    def _abandoned(self) -> Wait:
        """The wait for answers that were late when this side closed the connection.

        Few of many requests may be polls. Losses are charged with the time that they took.
        """
        counters, answers = self.measurement.counters, self.measurement.stage("peer.response")
        ns, count = counters.get("requestsAbandonedNs", 0), counters.get("requestsAbandoned", 0)
        turns = count + self._number("peer.response") + answers.unmatched
        of_losses_ns = max(self._losses.recovery_ns - self._time_ns("peer.response"), 0)
        left_ns = max(ns - of_losses_ns, 0)
        is_noteworthy = are_many(count, turns)
        is_noteworthy &= self.attention.bounds("peer.response").add_up(left_ns, count, turns)
        if not is_noteworthy:
            return Wait(Bottleneck.PEER, 0, False)
        mean = format_ns(ns // count)
        figure = f"{count:,} requests had no answer when this side closed, after {mean} on average"
        return Wait(Bottleneck.PEER, left_ns, True, None, (of_count(count, figure),))

    def _for_a_cpu(self) -> Wait:
        """Return all that is charged to the CPU, of the waits for threads."""
        ns = self._reading_cpu_ns + self._answering_cpu_ns + self._accepting_cpu_ns
        slow = [self._time_ns(stage) for stage in _OF_THREADS if self._is_noteworthy(stage)]
        is_noteworthy = any(ns >= _LEAST_OF_CPU * slow_ns for slow_ns in slow)
        is_noteworthy |= bool(self.attention.bounds("sched.runqueue").missed)
        stage = "rx.wakeup" if self._histogram("rx.wakeup").count else "rx.socket"
        cpu = self._cpu
        return Wait(cpu.cause, ns, is_noteworthy, stage, cpu.figures, culprit=cpu.culprit)


def _are_turns(answers: StageMeasurement) -> bool:
    """Return True if most were requests with one answer each, and not two streams."""
    count = answers.histogram.count
    return count >= MIN_SAMPLES and count >= answers.unmatched


def _alike(answers: StageMeasurement) -> Iterator[str]:
    """Yield a figure if all answers took about equally long."""
    p50_ns, p99_ns = (answers.histogram.percentile(percent) for percent in (50, 99))
    if p50_ns >= LONG_ANSWER_NS and p99_ns <= _ABOUT_EQUAL * p50_ns:
        yield "all answers take about as long: those of polls that end by a time-out do, too"
