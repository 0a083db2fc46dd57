"""The Events of one probe: a transition makes an object, or counts in a series. Pure.

Times are seconds of one monotonic clock, but for those in the Events, which are since the epoch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from latencyprobe_operator.api.events import Series, Transition

MOST_EVENTS = 5
"""The number of objects that a probe makes at most within `PERIOD_S`."""
PERIOD_S = 600.0
# Between two writes of a series.
_PAUSE_S = 60.0
# The API server deletes an Event an hour after its last write (kube-apiserver, --event-ttl).
_KEPT_S = 3000.0

_Identity = tuple[str, str]


@dataclass(slots=True)
class Entry:
    """One Event. `name`: empty until it is written."""

    transition: Transition
    series: Series
    used: float
    written: float = 0.0
    written_count: int = 0
    name: str = ""


class EventBook:
    """The Events of one probe within the last hour."""

    def __init__(self) -> None:
        self._entries: dict[_Identity, Entry] = {}
        self._created: deque[float] = deque()
        self.omitted = 0
        """The number of transitions for which there was no object."""

    def note(self, transition: Transition, *, at: float, wall: float) -> None:
        """Note a transition: in a new Event, in a series, or, beyond the limit, in a number."""
        self._forget(at)
        identity = (str(transition.reason), transition.subject)
        if entry := self._entries.get(identity):
            entry.series = replace(entry.series, count=entry.series.count + 1, last=wall)
            entry.used = at
        elif len(self._created) < MOST_EVENTS:
            self._created.append(at)
            self._entries[identity] = Entry(transition, Series(1, wall, wall), at)
        else:
            self.omitted += 1

    def due(self, at: float) -> list[Entry]:
        """Return the Events to write now."""
        return [
            entry
            for entry in self._entries.values()
            if entry.series.count > entry.written_count
            and (not entry.name or at - entry.written >= _PAUSE_S)
        ]

    def mark_written(self, entry: Entry, *, name: str, count: int, at: float) -> None:
        """Note that an Event is written with this count."""
        entry.name, entry.written_count, entry.written = name, count, at

    def drop(self, entry: Entry) -> None:
        """Forget an Event: it cannot be written, or is gone."""
        if self._entries.get(identity := _identity(entry)) is entry:
            del self._entries[identity]

    def _forget(self, at: float) -> None:
        while self._created and at - self._created[0] >= PERIOD_S:
            self._created.popleft()
        for entry in list(self._entries.values()):
            if at - entry.used >= _KEPT_S:
                self.drop(entry)


def _identity(entry: Entry) -> _Identity:
    return str(entry.transition.reason), entry.transition.subject
