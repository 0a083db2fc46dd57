"""Staleness: the time since each node's last report on a probe.

A node is *due* to report while its agent measures. Its staleness counts from the last report, or
from the time when it became due. The probe's interval decides how much is too much.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# An agent reports each interval. One report may be lost with its connection, and a busy node is
# some seconds late.
_PATIENCE_INTERVALS = 2
_PATIENCE_S = 10.0


def patience_s(interval_s: float) -> float:
    """Return the greatest staleness of an agent in order."""
    return _PATIENCE_INTERVALS * interval_s + _PATIENCE_S


@dataclass(frozen=True, slots=True)
class Staleness:
    """The time without a report of one node."""

    due_s: float = 0.0
    """Time since its last report, or since it became due; 0 if no report is due."""
    last_report: float | None = None
    """Time of its last report, in seconds since the epoch; None: never."""
    age_s: float = 0.0
    """Age of that report."""


NO_STALENESS = Staleness()


def age_text(seconds: float) -> str:
    """Format an age for people, rounded down so that it changes ever more seldom: `20s`, `3m`."""
    for unit, length, step in (("h", 3600, 1), ("m", 60, 10), ("m", 60, 1), ("s", 1, 10)):
        count = int(seconds / length / step) * step
        if count:
            return f"{count}{unit}"
    return f"{int(seconds)}s"


class ReportTimes:
    """The times of the nodes' reports on one probe. `at` is the loop's time, `wall` the epoch's."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}
        self._due_since: dict[str, float] = {}

    def note(self, node: str, *, at: float, wall: float) -> None:
        """Note a report."""
        self._last[node] = (at, wall)

    def has(self, node: str) -> bool:
        """Return True if the node has reported."""
        return node in self._last

    def staleness(self, node: str, *, is_due: bool, at: float) -> Staleness:
        """Return the staleness of a node; `is_due`: its agent measures, and should report."""
        if not is_due:
            self._due_since.pop(node, None)
        due_since = self._due_since.setdefault(node, at) if is_due else at
        last = self._last.get(node)
        if last is None:
            return Staleness(at - due_since)
        return Staleness(at - max(due_since, last[0]) if is_due else 0.0, last[1], at - last[0])

    def keep(self, nodes: Collection[str]) -> None:
        """Forget the nodes that no pod of the probe runs on any more."""
        for known in (self._last, self._due_since):
            for gone in known.keys() - set(nodes):
                del known[gone]
