"""The rate of one agent's reports: as much as the intervals of its probes justify.

The *allowance* follows from the desired states that the agent was sent. It has room for the largest
reports in parts, and for repetitions after a broken connection. A new session does not renew it.
It limits messages, their bytes and their parts. A message may have many parts: each is the report
on a probe, or a piece of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from latencyprobe.domain.fairness import MAX_PROBES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

EXCESS_RETRY_S = 60.0
# A busy target or pod in full takes 4 KiB of a report, and one with every position of some stages
# four times that.
_TARGET_BYTES = 16 << 10
# The node's own figures, interrupt handlers included.
_PROBE_BYTES = 64 << 10
# Agents send messages of up to twice this size.
_MESSAGE_BYTES = 256 << 10
# Of one interval: the summary, the pods that an acknowledgement chooses, and more of either. Each
# is a part, and may have a message of its own.
_MESSAGES = 4
# The agent's shortest interval.
_SHORTEST_INTERVAL_S = 0.1
# At once: what buffers hold after a pause, and what an earlier operator asked for.
EXTRA_MESSAGES = 1000
EXTRA_PARTS = _MESSAGES * MAX_PROBES
EXTRA_BYTES = 16 << 20
_EXTRA_REPORTS = 2


class ExcessiveReportsError(Exception):
    """An agent that sends more reports than the intervals of its probes justify."""

    retry_s = EXCESS_RETRY_S

    def __init__(self) -> None:
        super().__init__(
            "the agent sends more reports than the intervals of its probes justify. The next "
            f"attempt is in {EXCESS_RETRY_S:g} s"
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """The amount that one agent may send: per second, and in one report of each probe.

    `messages_per_s`: as many parts, too.
    """

    messages_per_s: float = 0.0
    bytes_per_s: float = 0.0
    report_bytes: int = 0

    def or_more(self, other: Allowance) -> Allowance:
        """Return the larger of the two in each respect."""
        return Allowance(
            max(self.messages_per_s, other.messages_per_s),
            max(self.bytes_per_s, other.bytes_per_s),
            max(self.report_bytes, other.report_bytes),
        )


def allowance_of(probes: Iterable[pb.Probe]) -> Allowance:
    """Return what an agent with these probes may send."""
    messages_per_s, bytes_per_s, report_bytes = 0.0, 0.0, 0
    for probe in probes:
        interval_s = max(probe.interval.ToNanoseconds() / 1e9, _SHORTEST_INTERVAL_S)
        size = _PROBE_BYTES + _TARGET_BYTES * _most_pods(probe)
        messages_per_s += (_MESSAGES + size / _MESSAGE_BYTES) / interval_s
        bytes_per_s += size / interval_s
        report_bytes += size
    return Allowance(messages_per_s, bytes_per_s, report_bytes)


def _most_pods(probe: pb.Probe) -> int:
    """Return the most targets or pods that a report has; pods that have ended are among these."""
    asked_for = len(probe.targets) + len(probe.pods)
    keeps_window = probe.window.ToNanoseconds() > 0
    return max(asked_for, probe.max_pods) if keeps_window else asked_for


class ReportRate:
    """A meter of one agent's reports. `clock`: seconds of a monotonic clock."""

    __slots__ = ("_allowance", "_applied", "_at", "_bytes", "_clock", "_messages", "_parts")

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._allowance = self._applied = Allowance()
        self._messages = float(EXTRA_MESSAGES)
        self._parts = float(EXTRA_PARTS)
        self._bytes = float(EXTRA_BYTES)
        self._at = self._clock()

    def expect(self, probes: Iterable[pb.Probe]) -> None:
        """Note that the agent is sent these probes; it may still have those before."""
        self._refill()
        self._allowance = self._applied.or_more(allowance_of(probes))

    def mark_applied(self, probes: Iterable[pb.Probe]) -> None:
        """Note that the agent has these probes, and no others."""
        self._refill()
        self._allowance = self._applied = allowance_of(probes)

    def take(self, size: int) -> None:
        """Count a message of this size; raise ExcessiveReportsError if it is beyond the rate."""
        self._refill()
        self._messages -= 1
        self._bytes -= size
        self._check()

    def take_parts(self, parts: int) -> None:
        """Count the parts of a message; raise ExcessiveReportsError if they are beyond the rate."""
        self._refill()
        self._parts -= parts
        self._check()

    def _check(self) -> None:
        if min(self._messages, self._parts, self._bytes) < 0:
            self._messages, self._parts = max(self._messages, 0), max(self._parts, 0)
            self._bytes = max(self._bytes, 0)
            raise ExcessiveReportsError

    def _refill(self) -> None:
        """Add what the time since the last call allows; never take back what is there."""
        now, allowance = self._clock(), self._allowance
        passed_s, self._at = now - self._at, now
        messages, most_bytes = passed_s * allowance.messages_per_s, EXTRA_BYTES
        most_bytes += _EXTRA_REPORTS * allowance.report_bytes
        self._messages = _refilled(self._messages, messages, EXTRA_MESSAGES)
        self._parts = _refilled(self._parts, messages, EXTRA_PARTS)
        self._bytes = _refilled(self._bytes, passed_s * allowance.bytes_per_s, most_bytes)


def _refilled(left: float, more: float, most: float) -> float:
    return max(left, min(left + more, most))
