"""Name servers: the wait for replies that never come, or only after the question was asked again.

The replies themselves are in udp.response.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latencyprobe.domain.attention import DEFAULT_BOUNDS, OPEN_TOO_LONG_NS
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.evidence import of_count
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.wait import FAILURE_NS, MANY_FAILURES, Wait, are_many, pending_of_kind

# Of the C library's: resolv.conf(5), "timeout".
_PATIENCE_OF_RESOLVERS_NS = 5_000_000_000
# Fewer have no reply yet, between the reading of counters and that of pending waits.
_SHARE_WITHOUT_REPLY = 0.01


def queries_without_reply(measurement: Measurement) -> Iterator[str]:
    """Yield the queries to port 53 that had no reply, also if they are few.

    They are no accusation, since the reply may not have been needed. Where pending waits are not
    known, as in a sum of pods, the replies may yet come.
    """
    if measurement.pending is None:
        return
    asked, lost = measurement.counters.get("dnsQueries", 0), _without_reply(measurement)
    if lost > 0 and lost >= _SHARE_WITHOUT_REPLY * asked:
        yield of_count(lost, f"failures: {lost:,} of {asked:,} queries to port 53 had no reply")


def _without_reply(measurement: Measurement) -> int:
    """Return the number of these queries. Those that wait for less than a second are not due."""
    waiting = pending_of_kind(measurement, "unansweredQueries")
    not_due = 0 if waiting.oldest_ns >= OPEN_TOO_LONG_NS else waiting.count
    counters = measurement.counters
    return counters.get("dnsQueries", 0) - counters.get("dnsQueriesEnded", 0) - not_due


@dataclass
class NameServers:
    """The name servers of a target. `dropped_ns`: the time that drops on this node have cost."""

    measurement: Measurement
    dropped_ns: int

    @property
    def waited_ns(self) -> int:
        """The time for which an application may have waited in vain, beside udp.response.

        After a question was sent again, a resolver waits for as long once more.
        """
        if self._lost:
            return self._lost * _PATIENCE_OF_RESOLVERS_NS
        return 2 * self._until_sent_again_ns

    def wait(self) -> Wait:
        """Return the wait for name servers that do not reply, or not to each question."""
        return self._of_lost() if self._lost else self._of_repeated()

    @property
    def _asked(self) -> int:
        return self.measurement.counters.get("dnsQueries", 0)

    @property
    def _lost(self) -> int:
        """The queries to port 53 without a reply, if most have none: no name server is there.

        Of fewer it is not known: a resolver may close its socket before a reply that it does not
        need any more.
        """
        lost = _without_reply(self.measurement)
        return lost if lost >= MANY_FAILURES and 2 * lost > self._asked else 0

    @property
    def _repeated(self) -> int:
        """The queries that their socket sent again, if they are many: each was waited for."""
        count = self.measurement.counters.get("dnsQueriesRepeated", 0)
        return count if are_many(count, self._asked) else 0

    @property
    def _until_sent_again_ns(self) -> int:
        """The wait until queries were sent again, without that of replies: it is in theirs."""
        if not self._repeated:
            return 0
        waited_ns = self.measurement.counters.get("dnsQueriesRepeatedNs", 0)
        mean_ns = waited_ns / self._repeated
        replies = self.measurement.stage("udp.response")
        early, _ = replies.histogram.below(round(mean_ns))
        late = round((replies.histogram.count - early) / replies.sampling_ratio)
        of_replies_ns = self.measurement.counters.get("dnsResponseNs", 0)
        return max(waited_ns - min(round(late * mean_ns), of_replies_ns), 0)

    def _of_lost(self) -> Wait:
        left_ns = max(self._lost * FAILURE_NS - self.dropped_ns, 0)
        if not left_ns:
            return Wait(Bottleneck.DNS, 0, False)
        figure = f"{self._lost:,} of {self._asked:,} queries to port 53 had no reply"
        return Wait(Bottleneck.DNS, left_ns, True, None, (of_count(self._lost, figure),))

    def _of_repeated(self) -> Wait:
        """Return the wait until queries were sent again, without those that had a reply then.

        Those are in udp.response with all of their time.
        """
        count, left_ns = self._repeated, max(self._until_sent_again_ns - self.dropped_ns, 0)
        if not left_ns:
            return Wait(Bottleneck.DNS, 0, False)
        is_noteworthy = DEFAULT_BOUNDS.add_up(left_ns, count, self._asked)
        figure = f"{count:,} of {self._asked:,} queries to port 53 had no reply until sent again"
        figures = (of_count(count, figure),)
        return Wait(Bottleneck.DNS, left_ns, is_noteworthy, "udp.response", figures)
