"""Losses: packets that were sent again, dropped or refused, and the time that this cost.

TCP sends a lost packet again, and the time is in tcp.recovery. What the peer had already, as it
reports, was no loss if its ACK was only delayed. If this node dropped the packet that was sent
again, the drop is the cause. Other events cost FAILURE_NS each, since their cost is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from latencyprobe.domain.attention import DEFAULT_BOUNDS, LONG_ANSWER_NS, Attention
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.connects import failed_connects, turned_away, turned_away_again
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.evidence import of_count, of_time
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.patience import PATIENCE_FACTOR
from latencyprobe.domain.stages import DROP_PREFIX, DROPS_IN_PREFIX
from latencyprobe.domain.wait import (
    FAILURE_NS,
    MANY_FAILURES,
    Wait,
    are_many,
    counted,
    pending_wait,
    shown,
)

# Reasons of the kernel (enum skb_drop_reason) that lose data which is waited for. The others end
# packets that are not needed any more: old segments, copies, resets, those of closed sockets.
_HARMFUL = frozenset(
    {
        "BPF_CGROUP_EGRESS",
        "CAKE_FLOOD",
        "CPU_BACKLOG",
        "DEV_READY",
        "FQ_BAND_LIMIT",
        "FQ_FLOW_LIMIT",
        "FQ_HORIZON_LIMIT",
        "FULL_RING",
        "IP_INADDRERRORS",
        "IP_OUTNOROUTES",
        "IP_RPFILTER",
        "NEIGH_DEAD",
        "NEIGH_FAILED",
        "NEIGH_QUEUEFULL",
        "NETFILTER_DROP",
        "NOMEM",
        "PKT_TOO_BIG",
        "PROTO_MEM",
        "QDISC_BURST_DROP",
        "QDISC_CONGESTED",
        "QDISC_DROP",
        "QDISC_OVERLIMIT",
        "SKB_CSUM",
        "SOCKET_BACKLOG",
        "SOCKET_FILTER",
        "SOCKET_RCVBUFF",
        "TC_EGRESS",
        "TC_INGRESS",
        "TCP_CSUM",
        "UDP_CSUM",
        "XDP",
        "XFRM_POLICY",
    }
)
# Reasons that end packets of which nothing is missing: copies, old segments, old ACKs, keep-alives.
_HARMLESS = frozenset(
    {
        "TCP_OFOMERGE",
        "TCP_OLD_ACK",
        "TCP_OLD_DATA",
        "TCP_OLD_SEQUENCE",
        "TCP_RFC7323_PAWS",
        "TCP_RFC7323_PAWS_ACK",
        "TCP_TOO_OLD_ACK",
    }
)
_HARMLESS_DROPS = frozenset(DROP_PREFIX + reason for reason in _HARMLESS)
_KNOWN_DROPS = _HARMLESS_DROPS | {DROP_PREFIX + reason for reason in _HARMFUL}
# The drops of a connect that fails at once, in the order in which its SYNs are taken off.
_OF_FAILED_CONNECTS = (f"{DROP_PREFIX}NEIGH_FAILED", f"{DROP_PREFIX}NETFILTER_DROP")
# receiveQueueOverflows counts these.
_FULL_QUEUES = frozenset({"SOCKET_RCVBUFF", "SOCKET_BACKLOG", "PROTO_MEM"})
# Those of datagrams alone. TCP sends none of these again: udp_queue_rcv_one_skb(), net/ipv4/udp.c.
_OF_DATAGRAMS = frozenset({"SOCKET_RCVBUFF", "UDP_CSUM"})
_ABORTED = ("connectAborted",)
# TCP_DELACK_MAX, include/net/tcp.h
_LONGEST_DELAYED_ACK_NS = 200_000_000
# A connect that is given up when another one stands, has not taken much longer.
_LONGER_THAN_A_RACE = 2
_RESPONSES = ("peer.response", "app.response")


def drops_that_may_matter(counters: Mapping[str, int]) -> Mapping[str, int]:
    """Return the drops by reason and by function, if not all are of packets that are not needed."""
    drops = {
        name: count
        for name, count in counters.items()
        if count and name.startswith((DROP_PREFIX, DROPS_IN_PREFIX))
    }
    reasons = {name for name in drops if name.startswith(DROP_PREFIX)}
    if reasons and reasons <= _HARMLESS_DROPS:
        return {}
    return {name: count for name, count in drops.items() if name not in _HARMLESS_DROPS}


def late_aborts(measurement: Measurement) -> Mapping[str, int]:
    """Return the counter of connects that this side gave up, if it had waited for an answer.

    Few are no verdict, and a loser of a race has not waited: it is given up as soon as another
    connect stands.
    """
    ns, counters = measurement.counters.get("connectAbortedNs", 0), counted(measurement, _ABORTED)
    if not counters:
        return {}
    median_ns = measurement.stage("tcp.connect").histogram.percentile(50)
    late_ns = max(LONG_ANSWER_NS, _LONGER_THAN_A_RACE * median_ns)
    return counters if ns >= late_ns * sum(counters.values()) else {}


@dataclass
class Losses:
    """The losses of a target in a window. `attention`: the bounds for its measurement.

    Large, because recoveries, connects and drops explain each other.
    """

    measurement: Measurement
    attention: Attention

    @property
    def recovery_ns(self) -> int:
        """The time that retransmissions have cost, without those that were not needed."""
        return self._recovered.sum_ns - self._needless[1]

    @cached_property
    def _needless(self) -> tuple[int, int]:
        """The recoveries that were not needed, and their time.

        Those are of segments that the peer had already, unless they took so long that an ACK was
        lost. How many of the segments these are is known, but not which of the recoveries: probes
        and reordered segments are the shortest.
        """
        counters = self.measurement.counters
        sent = counters.get("retransmits", 0) + counters.get("handshakeRetransmits", 0)
        part = min(counters.get("spuriousRetransmits", 0) / sent, 1.0) if sent else 0.0
        if not part:
            return 0, 0
        short, ns = self._recovered.below(_LONGEST_DELAYED_ACK_NS)
        count = round(part * short)
        return count, min(self._recovered.sum_of_shortest(count), ns)

    @cached_property
    def _recovered(self) -> Histogram:
        return self.measurement.stage("tcp.recovery").histogram

    @property
    def open_ns(self) -> int:
        """The time of losses that are not made good yet."""
        return self._open.ns + self._open_drops.ns

    @property
    def dropped_ns(self) -> int:
        """The time that drops on this node have cost."""
        return self._dropped_packets.ns

    @property
    def accept_queue_overflows(self) -> Wait:
        """SYNs and handshakes that found the accept queue full: their peers repeat them."""
        counters = counted(self.measurement, ("acceptQueueOverflows",))
        number = sum(counters.values())
        accepted = self.measurement.stage("tcp.accept").histogram.count
        return self._failures(Bottleneck.ACCEPT_QUEUE, counters, number, accepted)

    def waits(self) -> Iterator[Wait]:
        """Yield the waits for retransmissions, connects and dropped packets."""
        yield self._retransmissions()
        yield self._open
        yield self._open_drops
        yield from self._connects()
        yield self._dropped_packets

    @cached_property
    def _open(self) -> Wait:
        return self._open_of("unacknowledgedRetransmits", Bottleneck.PACKET_LOSS)

    @cached_property
    def _open_drops(self) -> Wait:
        return self._open_of("unacknowledgedDrops", Bottleneck.DROPS)

    def _open_of(self, kind: str, cause: Bottleneck) -> Wait:
        bounds = self.attention.bounds("tcp.recovery")
        return pending_wait(self.measurement, kind, cause, "tcp.recovery", bounds)

    def _retransmissions(self) -> Wait:
        ns = self.recovery_ns - self._of_failed_connects_ns - self._of_own_drops_ns
        names = ("retransmits", "rtos", "spuriousRetransmits")
        figures = shown(counted(self.measurement, names))
        bounds = self.attention.bounds("tcp.recovery")
        count = self._recovered.count - self._needless[0]
        is_noteworthy = bounds.add_up(ns, count, self._requests)
        return Wait(Bottleneck.PACKET_LOSS, ns, is_noteworthy, "tcp.recovery", figures)

    @property
    def _requests(self) -> int:
        """The number of exchanges that losses could hold up."""
        stages = (self.measurement.stage(name).histogram.count for name in _RESPONSES)
        connects = self.measurement.stage("tcp.connect").histogram.count
        return max(*stages, connects)

    @cached_property
    def abandoned_connects_ns(self) -> int:
        """The time of connects that this side gave up late, by those that stood; 0 if none was.

        The loser of a race between two addresses is given up about when the other one answers.
        Among those that stood, some may have waited for a lost SYN.
        """
        counters, stood = self.measurement.counters, self.measurement.stage("tcp.connect").histogram
        count, ns = counters.get("connectAborted", 0), counters.get("connectAbortedNs", 0)
        if not count:
            return 0
        late_ns = LONG_ANSWER_NS
        if stood.count:
            median_ns, slowest_ns = stood.percentiles(50, 99)
            late_ns = min(PATIENCE_FACTOR * slowest_ns, LONG_ANSWER_NS)
            late_ns = max(late_ns, _LONGER_THAN_A_RACE * median_ns)
        return ns if are_many(count, count + stood.count) and ns >= late_ns * count else 0

    @cached_property
    def _unanswered_connects(self) -> int:
        """Connects that failed after they repeated SYNs: without an answer, aborted, or rejected.

        A SYN is repeated after a second. Before that, the repeated ones are of connects that stood.
        """
        counters = self.measurement.counters
        aborted = counters.get("connectAborted", 0)
        if 0 < counters.get("connectAbortedNs", 0) < aborted * FAILURE_NS:
            aborted = 0
        again = turned_away_again(counters)
        repeated = min(aborted, counters.get("connectRetransmits", 0) - again)
        return counters.get("connectTimedOut", 0) + repeated + again

    @cached_property
    def _of_failed_connects_ns(self) -> int:
        return min(self.recovery_ns, self._unanswered_connects * self._recovered.mean_ns)

    def _connects(self) -> Iterator[Wait]:
        counters = failed_connects(self.measurement.counters)
        answered_late = turned_away_again(self.measurement.counters)
        aborted = self._unanswered_connects - counters.get("connectTimedOut", 0) - answered_late
        abandoned = self._abandoned_connects
        if aborted and not abandoned.ns:
            counters = {**counters, "connectAborted": aborted}
        made = self.measurement.stage("tcp.connect").histogram.count
        number = sum(counters.values())
        failures = self._failures(Bottleneck.CONNECT_FAILURES, counters, number, made)
        longer_ns = max(failures.ns, self._of_failed_connects_ns - abandoned.ns)
        yield Wait(failures.cause, longer_ns, failures.is_noteworthy, None, failures.figures)
        yield abandoned
        yield pending_wait(self.measurement, "unansweredConnects", Bottleneck.CONNECT_FAILURES)

    @property
    def _abandoned_connects(self) -> Wait:
        ns, count = self.abandoned_connects_ns, self.measurement.counters.get("connectAborted", 0)
        if not ns:
            return Wait(Bottleneck.CONNECT_FAILURES, 0, False)
        among = count + self.measurement.stage("tcp.connect").histogram.count
        is_noteworthy = DEFAULT_BOUNDS.add_up(ns, count, among)
        mean = format_ns(ns // count)
        figure = f"{count:,} connects had no answer when this side gave up, after {mean} on average"
        figures = (of_count(count, figure),)
        return Wait(Bottleneck.CONNECT_FAILURES, ns, is_noteworthy, None, figures)

    @cached_property
    def _drops(self) -> Mapping[str, int]:
        """Harmful drops by reason, without SYNs of connects that failed for the same reason."""
        counters = self.measurement.counters
        drops = {
            name: count
            for name, count in counters.items()
            if count and name.removeprefix(DROP_PREFIX) in _HARMFUL and name.startswith(DROP_PREFIX)
        }
        left = turned_away(counters)
        for name in _OF_FAILED_CONNECTS:
            taken = min(drops.get(name, 0), left)
            drops[name], left = drops.get(name, 0) - taken, left - taken
        return {name: count for name, count in drops.items() if count > 0}

    @cached_property
    def _number_of_drops(self) -> int:
        full = sum(self._drops.get(DROP_PREFIX + reason, 0) for reason in _FULL_QUEUES)
        others = sum(self._drops.values()) - full
        return others + max(full, self.measurement.counters.get("receiveQueueOverflows", 0))

    @cached_property
    def _dropped_segments(self) -> int:
        """The drops that may be of TCP, of which it sends the packets again.

        Overflows without a reason are not: they are mostly of datagrams.
        """
        datagrams = {DROP_PREFIX + reason for reason in _OF_DATAGRAMS}
        return sum(count for name, count in self._drops.items() if name not in datagrams)

    @cached_property
    def _of_own_drops_ns(self) -> int:
        """The time of the retransmissions of packets that this node dropped."""
        left_ns = self.recovery_ns - self._of_failed_connects_ns
        return min(left_ns, self.measurement.counters.get("droppedAndResentNs", 0))

    @property
    def _unrepaired_drops(self) -> int:
        """The drops whose time is in no recovery, such as those of datagrams."""
        resent = max(self._resent_drops - max(self._drops_for_others - self._acks, 0), 0)
        left = self._dropped_segments - self._dropped_acks
        return self._number_of_drops - self._dropped_acks - min(resent, left)

    @property
    def _dropped_acks(self) -> int:
        """The harmful drops that were ACKs without data, and cost nothing: the next says the same.

        Those of other reasons were ACKs first.
        """
        return min(max(self._acks - self._drops_for_others, 0), self._dropped_segments)

    @property
    def _acks(self) -> int:
        return self.measurement.counters.get("droppedAcks", 0)

    @property
    def _resent_drops(self) -> int:
        return self.measurement.counters.get("droppedAndResent", 0)

    @cached_property
    def _drops_for_others(self) -> int:
        """The drops for reasons that are not known to be harmful, nor harmless."""
        return sum(
            count
            for name, count in self.measurement.counters.items()
            if name.startswith(DROP_PREFIX) and name not in _KNOWN_DROPS
        )

    @cached_property
    def _dropped_packets(self) -> Wait:
        names = counted(self.measurement, ("receiveQueueOverflows",))
        places = {
            name: count
            for name, count in self.measurement.counters.items()
            if name.startswith(DROPS_IN_PREFIX) and count
        }
        received = self.measurement.stage("rx.total").histogram.count
        # What was sent again was needed, also for a reason that no list here has.
        number = max(self._number_of_drops - self._dropped_acks, self._resent_drops)
        ns = self._of_own_drops_ns + self._unrepaired_drops * FAILURE_NS
        is_noteworthy = number >= MANY_FAILURES
        is_noteworthy &= DEFAULT_BOUNDS.add_up(ns, number, number + received)
        figures = (*shown({**names, **self._drops}), *shown(places), *self._resent())
        return Wait(Bottleneck.DROPS, ns, is_noteworthy, None, figures)

    def _resent(self) -> Iterator[str]:
        """Yield what the drops cost that were joined to their retransmissions."""
        ns, count = self._of_own_drops_ns, self._resent_drops
        if ns and count:
            took = f"their recovery took {format_ns(ns)} in all"
            yield of_time(ns, f"{count:,} of the dropped segments were sent again: {took}")

    @staticmethod
    def _failures(cause: Bottleneck, counters: Mapping[str, int], number: int, good: int) -> Wait:
        """Return the wait of events whose cost was not measured."""
        ns = number * FAILURE_NS
        is_noteworthy = number >= MANY_FAILURES and DEFAULT_BOUNDS.add_up(ns, number, number + good)
        return Wait(cause, ns, is_noteworthy, None, shown(counters))
