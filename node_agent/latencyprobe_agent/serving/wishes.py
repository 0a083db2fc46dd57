"""The messages of a stream's client: reports that it has, and pods that it wants in full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container
from itertools import islice

from latencyprobe.domain.fairness import MAX_PROBES
from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.summaries import choice_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

Requests = AsyncIterator[pb.WatchReportsRequest]
# A client sends one message for each report. One that sends without a pause waits this long.
_PAUSE_S = 0.01


class Wishes:
    """The pods that a client wants in full, by probe.

    `acknowledge`: called with the sequence of the newest report that the client has taken in.
    `is_known`: decides whether a probe exists, and has a window.
    """

    def __init__(self, acknowledge: Callable[[int], None], is_known: Callable[[str], bool]) -> None:
        self._acknowledge = acknowledge
        self._is_known = is_known
        self._choices: dict[str, PodChoice] = {}
        self._changed: set[str] = set()
        self._has_changed = asyncio.Event()

    async def read(self, requests: Requests) -> None:
        """Read the client's messages; after the last one, wait until cancelled."""
        async for request in requests:
            self.take(request)
            await asyncio.sleep(_PAUSE_S)
        await asyncio.Event().wait()

    def take(self, request: pb.WatchReportsRequest) -> None:
        """Take one message; probes that do not exist are ignored."""
        self._acknowledge(request.acknowledged)
        for wanted in islice(request.wanted, MAX_PROBES):
            if not self._is_known(wanted.probe_id):
                continue
            self._choices[wanted.probe_id] = choice_from_proto(wanted.choice)
            self._changed.add(wanted.probe_id)
            self._has_changed.set()

    def choice_of(self, probe_id: str, default: PodChoice) -> PodChoice:
        """Return the client's choice for this probe."""
        return self._choices.get(probe_id, default)

    async def until_changed(self) -> None:
        """Wait until the client wants other pods."""
        await self._has_changed.wait()

    def take_changed(self) -> frozenset[str]:
        """Return the probes whose choice is new since the last call."""
        changed = frozenset(self._changed)
        self._changed.clear()
        self._has_changed.clear()
        return changed

    def keep(self, probe_ids: Container[str]) -> None:
        """Forget the probes that do not exist any more."""
        self._choices = {name: each for name, each in self._choices.items() if name in probe_ids}
