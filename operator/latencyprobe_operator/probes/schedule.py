"""The schedule of a probe's status: pure, from the times of its reports and writes.

All times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable

# Between two writes; and changes within the second time are written together.
_SHORTEST_PAUSE_S = 1.0
_GATHER_S = 0.1
# The agents' reports of one interval come together, more or less.
_LONGEST_SETTLE_S = 0.5
# After a restart, agents that are known to measure get an interval and this to report again. Their
# intervals do not end at one time.
_GRACE_S = 5.0
# To connect to 5,000 agents takes half a minute, and programs may have to be compiled.
_LONGEST_GRACE_S = 120.0
# As agents.generations.LEASE_S. Agents without a client by then have detached.
_LONGEST_LEASE_S = 300.0
_IDLE_REFRESH_S = 600.0
_NEVER = -1e9


class StatusSchedule:
    """The times at which a status is due.

    Figures are due when all nodes have reported since the last ones, or shortly after the first
    report. They are never due sooner than an interval after the last ones. Without reports, old
    figures still leave the window: new ones are due after an interval and a half. A shorter time
    would often end just before a report.
    """

    def __init__(self) -> None:
        self.nodes = 0
        """The number of nodes that run targets of the probe."""
        self._last_figures = _NEVER
        self._first_report: float | None = None
        self._reporters: set[str] = set()
        # Until then, agents that are yet to attach prolong the grace; 0: there is none.
        self._longest_grace_until = 0.0
        self._grace_until = 0.0
        self._attaching = False

    def grant_grace(self, now: float, interval_s: float | None) -> None:
        """Let the status of an earlier operator stand until agents can have reported.

        `interval_s`: None as long as this operator does not connect to the agents.
        """
        if interval_s is None:
            self._grace_until = self._longest_grace_until = now + _LONGEST_LEASE_S
        else:
            self._grace_until = now + interval_s + _GRACE_S
            self._longest_grace_until = max(now + _LONGEST_GRACE_S, self._grace_until)

    def prolong_grace(
        self, now: float, interval_s: float, *, attaching: Callable[[], bool]
    ) -> None:
        """Let it stand longer if agents are yet to attach, or were at the last call.

        Once they have attached, they get as long to report as all others.
        """
        if now >= self._longest_grace_until:
            return
        were_attaching, self._attaching = self._attaching, attaching()
        if self._attaching or were_attaching:
            until = min(now + interval_s + _GRACE_S, self._longest_grace_until)
            self._grace_until = max(self._grace_until, until)

    def in_grace(self, now: float) -> bool:
        """Decide whether the status stands while reports of nodes are missing."""
        return now < self._grace_until

    def end_grace(self) -> None:
        """Note that the status of the earlier operator does not stand any more."""
        self._grace_until = self._longest_grace_until = 0.0

    def take_report(self, node: str, now: float) -> bool:
        """Note a report; return whether the next status may be due earlier."""
        self._reporters.add(node)
        if self._first_report is None:
            self._first_report = now
            return True
        return self.in_grace(now) or len(self._reporters) == self.nodes

    def figures_due(self, interval_s: float, *, idle: bool) -> float:
        """Return the time when the next figures are due."""
        if idle:
            return self._last_figures + _IDLE_REFRESH_S
        if self._first_report is None:
            return self._last_figures + 1.5 * interval_s
        complete = len(self._reporters) >= self.nodes
        settle_s = 0.0 if complete else min(_LONGEST_SETTLE_S, interval_s / 10)
        return max(self._first_report + settle_s, self._last_figures + interval_s * 0.97)

    def next_check(
        self,
        now: float,
        interval_s: float,
        *,
        idle: bool,
        reported: bool,
        remaining_s: float | None,
    ) -> float:
        """Return the time of the next check, if nothing happens before.

        `reported`: the agents that are waited for have reported. `remaining_s`: the time to the end
        of the probe.
        """
        due = self.figures_due(interval_s, idle=idle)
        if self.in_grace(now) and not reported:
            due = self._grace_until
        return due if remaining_s is None else min(due, now + remaining_s)

    def mark_figures(self, now: float) -> None:
        """Note that the figures of this time are taken."""
        self._last_figures, self._first_report = now, None
        self._reporters.clear()

    def mark_failed(self, now: float) -> None:
        """Note that a write has failed: its figures are due again."""
        self._last_figures = _NEVER
        self._first_report = self._first_report or now

    def forget_reports(self) -> None:
        """Expect the first report again: the probe does not measure any more."""
        self._first_report = None


def pause_s(
    now: float, last_write: float | None, *, last_check: float = _NEVER, due: float = _NEVER
) -> float:
    """Return the pause before a check: two writes, and two checks, are not close together.

    While a thousand agents attach, each change of one is a reason for a check. `due`: the time when
    figures are due; no check waits longer because of the one before.
    """
    after_write = _NEVER if last_write is None else last_write + _SHORTEST_PAUSE_S
    after_check = min(last_check + _SHORTEST_PAUSE_S, due)
    return max(after_write - now, after_check - now, _GATHER_S)
