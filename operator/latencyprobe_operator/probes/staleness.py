"""How long nodes have been silent on a probe: what was heard of each, and when.

A node is *due* to report while its agent measures; its silence counts from the last report, or from
when it became due. Which silence is too long depends on the probe's interval.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# An agent reports each interval. One report may be lost with its connection, and a busy node is
# some seconds late.
_PATIENCE_INTERVALS = 2
_PATIENCE_S = 10.0


def patience_s(interval_s: float) -> float:
    """How long no report of an agent that is due to report is no news."""
    return _PATIENCE_INTERVALS * interval_s + _PATIENCE_S


@dataclass(frozen=True, slots=True)
class Silence:
    """How long nothing was heard of one node."""

    due_s: float = 0.0
    """Since it last reported, or was to begin with it; 0 where nothing is expected of it."""
    last_report: float | None = None
    """When it last reported, in seconds since the epoch; None: never."""
    age_s: float = 0.0
    """How long ago that was."""


NO_SILENCE = Silence()


def age_text(seconds: float) -> str:
    """An age for people, rounded down so that it is told anew ever more seldom: `20s`, `3m`."""
    for unit, length, step in (("h", 3600, 1), ("m", 60, 10), ("m", 60, 1), ("s", 1, 10)):
        count = int(seconds / length / step) * step
        if count:
            return f"{count}{unit}"
    return f"{int(seconds)}s"


class Hearing:
    """What was heard of the nodes of one probe. `at` is the loop's time, `wall` the epoch's."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}
        self._due_since: dict[str, float] = {}

    def heard(self, node: str, *, at: float, wall: float) -> None:
        """It reported."""
        self._last[node] = (at, wall)

    def silence(self, node: str, *, is_due: bool, at: float) -> Silence:
        """How long it has been silent; `is_due`: whether its agent says that it measures."""
        if not is_due:
            self._due_since.pop(node, None)
        due_since = self._due_since.setdefault(node, at) if is_due else at
        last = self._last.get(node)
        if last is None:
            return Silence(at - due_since)
        return Silence(at - max(due_since, last[0]) if is_due else 0.0, last[1], at - last[0])

    def keep(self, nodes: Collection[str]) -> None:
        """Forget the nodes that no pod of the probe runs on any more."""
        for known in (self._last, self._due_since):
            for gone in known.keys() - set(nodes):
                del known[gone]
