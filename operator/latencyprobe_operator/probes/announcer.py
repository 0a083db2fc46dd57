"""The announcer of one probe: writes its transitions as Events."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.api.events import Series, event_body, event_name
from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.kube.events import EventOutcome
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.event_book import MOST_EVENTS, PERIOD_S, Entry, EventBook
from latencyprobe_operator.probes.facts import NodeFacts
from latencyprobe_operator.probes.objectives import Judgement
from latencyprobe_operator.probes.transitions import NodesWatch, ObjectivesHistory, VerdictWatch

log = logging.getLogger(__name__)


class EventWriter(Protocol):
    """As `kube.events.Events`."""

    async def create(self, namespace: str, body: Mapping[str, Any]) -> EventOutcome:
        """Write a new Event."""

    async def extend(self, namespace: str, name: str, series: Mapping[str, Any]) -> EventOutcome:
        """Write the series of an Event."""


class Announcer:
    """The transitions of one probe and their Events. `previous`: the status of an operator before.

    `events`: None writes none.
    """

    def __init__(
        self,
        key: ProbeKey,
        previous: Mapping[str, Any],
        events: EventWriter | None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._events = events
        self._wall_clock = wall_clock
        self._verdict = VerdictWatch(previous)
        self._objectives = ObjectivesHistory(previous)
        self._nodes = NodesWatch(previous)
        self._book = EventBook()
        self._omissions = RepeatedLines(log)
        self._instance = socket.gethostname()

    def observe(
        self,
        document: Document,
        spec: ProbeSpec,
        nodes: Sequence[NodeFacts],
        judgements: Sequence[Judgement],
        *,
        at: float,
    ) -> None:
        """Take in a status of a probe that measures, with the facts that it was built from."""
        wall, omitted = self._wall_clock(), self._book.omitted
        for transition in (
            *self._verdict.observe(document.get("summary") or {}, spec.window_s, at=at),
            *self._objectives.observe(judgements),
            *self._nodes.observe(nodes, at=at),
        ):
            self._book.note(transition, at=at, wall=wall)
        if self._book.omitted > omitted:
            self._omissions.note(
                "omitted",
                f"{self._key}: a transition has no Event: a probe makes at most {MOST_EVENTS} "
                f"in {PERIOD_S / 60:g} minutes",
                interval_s=PERIOD_S,
            )

    def pause(self) -> None:
        """Note that the probe does not measure."""
        self._verdict.pause()
        self._nodes.pause()

    async def write(self, *, at: float) -> None:
        """Write the Events that are due. A later attempt may follow a failure."""
        if self._events is None:
            return
        for entry in self._book.due(at):
            series = entry.series
            name = entry.name or event_name(self._key, uuid.uuid4().hex[:16])
            outcome = await self._write(self._events, entry, name, series)
            if outcome is EventOutcome.WRITTEN:
                self._book.mark_written(entry, name=name, count=series.count, at=at)
            elif outcome is EventOutcome.REFUSED:
                self._book.drop(entry)
            else:
                return

    async def _write(
        self, events: EventWriter, entry: Entry, name: str, series: Series
    ) -> EventOutcome:
        namespace = self._key.namespace
        if entry.name:
            return await events.extend(namespace, name, series.document())
        body = event_body(self._key, name, entry.transition, series, instance=self._instance)
        return await events.create(namespace, body)
