"""Unobserved time: the parts of a node's window that no report covers.

An agent states the part of a window in which it did not measure. Other gaps show in the reports
themselves: each begins where the one before ended. This is not so if reports of a stream are
missing. An agent that was restarted has lost its window: all before its first report is a gap. An
agent's clock may be set: so a gap is no longer than the operator has waited.

An operator that has just begun to lead knows no report before. So an agent states the age of its
window, and whether it began with the first state since the agent's start. Then an agent before it
was to measure for as long as the probe wants the pods of this node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from latencyprobe_operator.observed_state import ReportSource, Span

# Clocks and rounding; also the shortest time that is worth a person's attention.
_SHORTEST_S = 0.5
# The API's times are of whole seconds, and are compared with the clock of another node.
_SHORTEST_LOSS_S = 2.0
_RESTARTED = "the agent was restarted"
# Of the first report that this operator has of a node.
_NOT_BEFORE = "the agent has no figures of before"
# Of one node. The times in its reports may be any, so that its gaps may never leave the window.
_MOST_GAPS = 64


@dataclass(frozen=True, slots=True)
class Unobserved:
    """A part of a node's window that was not observed, and the reason."""

    seconds: int = 0
    reason: str = ""

    def __bool__(self) -> bool:
        return self.seconds > 0

    def __str__(self) -> str:
        return f"{self.seconds}s of the window were not observed: {self.reason}"


ALL_OBSERVED = Unobserved()


@dataclass(frozen=True, slots=True)
class WindowAge:
    """The age of an agent's window at its end; infinite from an older agent, which states none.

    `of_first_state`: the window began with the first state since the agent's start.
    """

    seconds: float = math.inf
    of_first_state: bool = False


UNKNOWN_AGE = WindowAge()


@dataclass(frozen=True, slots=True)
class _Gap:
    begin: float
    end: float
    reason: str

    def within(self, begin: float, end: float) -> float:
        """Return the length of its part between two times."""
        return max(min(self.end, end) - max(self.begin, begin), 0.0)


class ObservedTime:
    """The spans of one node's reports on one probe, by the agent's clock."""

    __slots__ = ("_age", "_at", "_begin", "_begin_at", "_gaps", "_source", "_span", "_stated_s")

    def __init__(self) -> None:
        self._at = 0.0
        self._age = UNKNOWN_AGE
        self._begin = self._begin_at = math.inf
        """The first time that is known, by the agent's clock and by the operator's."""
        self._span: Span | None = None
        self._source = ReportSource()
        self._gaps: tuple[_Gap, ...] = ()
        self._stated_s = 0.0

    def note(
        self,
        span: Span,
        source: ReportSource,
        *,
        stated_s: float,
        window_s: float,
        at: float,
        age: WindowAge = UNKNOWN_AGE,
        wanted_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Note a report that arrived `at` this time of a monotonic clock.

        `stated_s`: the unobserved part of the window by the agent itself. `wanted_s` returns the
        seconds for which the probe wants pods of this node measured, at most.
        """
        begin_at = at - (span.end - span.begin)
        if span.begin < self._begin:
            self._begin, self._begin_at = span.begin, begin_at
        if self._span is None or source.instance_id != self._source.instance_id:
            # It has all earlier gaps in it.
            self._gaps = self._lost(span, begin_at, age, window_s, wanted_s) or self._gaps
        elif source.stream == self._source.stream:
            gap_s = min(span.begin - self._span.end, begin_at - self._at)
            self._gaps += _gap_before(span.begin, gap_s, "no report covers them")
        # On another stream of one instance, the summary still has what it measured in between.
        self._span, self._source, self._stated_s, self._at = span, source, stated_s, at
        self._age = age
        self._gaps = _joined(tuple(_within(span, window_s, self._gaps)))

    def _lost(
        self,
        span: Span,
        begin_at: float,
        age: WindowAge,
        window_s: float,
        wanted_s: Callable[[], float],
    ) -> tuple[_Gap, ...]:
        """Return the gap that the window of an agent before this one has left; () without any."""
        # The first report of its window may be missing.
        before_s = max(age.seconds - (span.end - span.begin), 0.0) if age != UNKNOWN_AGE else 0.0
        begun = span.begin - before_s
        gap_s = 0.0
        if self._span:
            gap_s = min(begun - self._begin, begin_at - before_s - self._begin_at)
        known = _gap_before(begun, gap_s, _RESTARTED)
        if not age.of_first_state or age.seconds >= window_s:
            return known
        missing_s = min(wanted_s(), window_s) - age.seconds
        if missing_s < max(gap_s, _SHORTEST_LOSS_S):
            return known
        reason = _RESTARTED if self._span else _NOT_BEFORE
        return _gap_before(span.end - age.seconds, missing_s, reason)

    def unobserved(self, window_s: float) -> Unobserved:
        """Return the unobserved part of the window that ends with the newest report."""
        if self._span is None:
            return ALL_OBSERVED
        end, begin = self._span.end, self._span.end - window_s
        inside = [(gap.within(begin, end), gap.reason) for gap in self._gaps]
        found_s = sum(seconds for seconds, _ in inside)
        kept_from = max(end - self._age.seconds, begin)
        own_s = sum(gap.within(kept_from, end) for gap in self._gaps)
        # An agent that was late knows of the same gap, but of none before its window.
        seconds = min(found_s - own_s + max(own_s, self._stated_s), window_s)
        if seconds < _SHORTEST_S:
            return ALL_OBSERVED
        _, reason = max(inside, default=(0.0, ""))
        if self._stated_s > found_s:
            reason = "the agent did not measure"
        return Unobserved(max(round(seconds), 1), reason)


def _gap_before(end: float, seconds: float, reason: str) -> tuple[_Gap, ...]:
    """Return the gap of this length that ends at this time; nothing if it is too short."""
    if seconds < _SHORTEST_S:
        return ()
    return (_Gap(end - seconds, end, reason),)


def _within(span: Span, window_s: float, gaps: Iterable[_Gap]) -> Iterator[_Gap]:
    """Yield the parts of gaps in the window that ends with this span.

    Later ones are from before the agent's clock was set back.
    """
    for gap in gaps:
        if gap.begin < span.end and gap.end > span.end - window_s:
            yield replace(gap, end=min(gap.end, span.end))


def _joined(gaps: tuple[_Gap, ...]) -> tuple[_Gap, ...]:
    """Return the gaps, with the first two as one of their length if there are too many."""
    if len(gaps) <= _MOST_GAPS:
        return gaps
    first, second, *others = gaps
    length_s = first.end - first.begin + second.end - second.begin
    return (_Gap(second.end - length_s, second.end, second.reason), *others)
