"""Acknowledgements: the operator's part of one agent's stream of reports.

One message carries the newest acknowledgement and all choices since the last one. So an agent that
reads slowly makes no queue grow. An agent ignores choices for probes that it does not have yet. So
a choice goes out once the agent has reported on the probe in this stream. It goes with the next
acknowledgement, since a message of its own costs as much: unless a status waits for the pods.

An agent keeps nothing of a report of summaries alone, so that its acknowledgement *can wait* for
the next message. Of six in a row, five wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable

from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.summaries import choice_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# An agent of an earlier version keeps eight reports that are not acknowledged.
_MOST_WAITING = 5


class Acknowledgements:
    """The newest acknowledgement to one agent, and the pods that are wanted in full."""

    def __init__(self) -> None:
        self.streams = 0
        """The number of streams so far."""
        self._choices: dict[str, PodChoice] = {}
        self._unsent: set[str] = set()
        self._reported: set[str] = set()
        self._acknowledged = 0
        self._waiting = 0
        """The number of acknowledgements that wait."""
        self._news = asyncio.Event()

    def open_stream(self, term: int = 0) -> AsyncIterator[pb.WatchReportsRequest]:
        """Begin a stream of this term; return its messages. Those of the stream before end."""
        self.streams += 1
        self._acknowledged = self._waiting = 0
        self._unsent, self._reported = set(self._choices), set()
        self._news = asyncio.Event()
        return self._messages(self._news, term)

    def acknowledge(
        self, sequence: int, probe_uids: Iterable[str] = (), *, can_wait: bool = False
    ) -> None:
        """Note that the report of this number, on these probes, and all before were taken in."""
        self._acknowledged = sequence
        self._reported.update(probe_uids)
        self._waiting += 1
        if can_wait and self._waiting <= _MOST_WAITING and not self._unsent & self._reported:
            return
        self._waiting = 0
        self._news.set()

    def want(self, probe_uid: str, choice: PodChoice, *, at_once: bool = False) -> None:
        """Note the pods of a probe that are wanted in full from now on.

        `at_once`: without waiting for the next acknowledgement.
        """
        if self._choices.get(probe_uid) != choice:
            self._choices[probe_uid] = choice
            self._unsent.add(probe_uid)
        if at_once and probe_uid in self._unsent & self._reported:
            self._news.set()

    def keep(self, probe_uids: Collection[str]) -> None:
        """Forget all other probes."""
        self._reported &= set(probe_uids)
        for gone in self._choices.keys() - set(probe_uids):
            del self._choices[gone]
            self._unsent.discard(gone)

    async def _messages(
        self, news: asyncio.Event, term: int
    ) -> AsyncIterator[pb.WatchReportsRequest]:
        yield pb.WatchReportsRequest(term=term)
        while True:
            await news.wait()
            news.clear()
            sent = self._unsent & self._reported
            wanted = [
                pb.WantedPods(probe_id=uid, choice=choice_to_proto(self._choices[uid]))
                for uid in sorted(sent)
            ]
            self._unsent -= sent
            yield pb.WatchReportsRequest(acknowledged=self._acknowledged, wanted=wanted)
