"""Acknowledgements: the operator's part of one agent's stream of reports.

One message carries the newest acknowledgement and all choices since the last one. So an agent that
reads slowly makes no queue grow. An agent ignores choices for probes that it does not have yet. So
a choice goes out once the agent has reported on the probe in this stream. It goes with the next
acknowledgement, since a message of its own costs as much: unless a status waits for the pods.

An agent keeps nothing of a report of summaries alone, so that its acknowledgement *can wait* for
the next message. Of six in a row, five wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable

from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.summaries import choice_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# An agent of an earlier version keeps eight reports that are not acknowledged.
_MOST_WAITING = 5


# One for all agents: a set takes 216 bytes, an empty one too.
_NONE: frozenset[str] = frozenset()


def _ignore() -> None:
    """Have a message wait until it is taken."""


class Acknowledgements:
    """The newest acknowledgement to one agent, and the pods that are wanted in full."""

    __slots__ = (
        "_acknowledged",
        "_choices",
        "_due",
        "_on_due",
        "_opening",
        "_reported",
        "_unsent",
        "_waiting",
        "streams",
    )

    def __init__(self) -> None:
        self.streams = 0
        """The number of streams so far."""
        self._choices: dict[str, PodChoice] = {}
        # New sets take the place of these: one that was emptied keeps its memory.
        self._unsent = self._reported = _NONE
        self._acknowledged = 0
        self._waiting = 0
        """The number of acknowledgements that wait."""
        self._due = False
        self._on_due: Callable[[], None] = _ignore
        self._opening: pb.WatchReportsRequest | None = None

    def open_stream(self, on_due: Callable[[], None] = _ignore, *, term: int = 0) -> None:
        """Begin a stream of this term in place of the one before.

        `on_due`: there is a message to `take`, the opening one at once.
        """
        self.streams += 1
        self._acknowledged = self._waiting = 0
        self._unsent, self._reported = frozenset(self._choices), _NONE
        self._due, self._on_due = False, on_due
        self._opening = pb.WatchReportsRequest(term=term)
        on_due()

    def close_stream(self) -> None:
        """End the stream: its messages are not sent any more."""
        self._on_due = _ignore

    def acknowledge(
        self, sequence: int, probe_uids: Iterable[str] = (), *, can_wait: bool = False
    ) -> None:
        """Note that the report of this number, on these probes, and all before were taken in."""
        self._acknowledged = sequence
        if more := [uid for uid in probe_uids if uid not in self._reported]:
            # Interned, since all nodes of a probe keep it.
            self._reported |= frozenset(map(sys.intern, more))
        self._waiting += 1
        if can_wait and self._waiting <= _MOST_WAITING and not self._unsent & self._reported:
            return
        self._waiting = 0
        self._mark_due()

    def want(self, probe_uid: str, choice: PodChoice, *, at_once: bool = False) -> None:
        """Note the pods of a probe that are wanted in full from now on.

        `at_once`: without waiting for the next acknowledgement.
        """
        if self._choices.get(probe_uid) != choice:
            self._choices[probe_uid] = choice
            self._unsent |= {probe_uid}
        if at_once and probe_uid in self._unsent & self._reported:
            self._mark_due()

    def keep(self, probe_uids: Collection[str]) -> None:
        """Forget all other probes."""
        self._reported &= frozenset(probe_uids)
        for gone in self._choices.keys() - set(probe_uids):
            del self._choices[gone]
            self._unsent -= {gone}

    def take(self) -> pb.WatchReportsRequest | None:
        """Return the message that is due, with all news; None if there is no such message."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            return opening
        if not self._due:
            return None
        self._due = False
        sent = self._unsent & self._reported
        wanted = [
            pb.WantedPods(probe_id=uid, choice=choice_to_proto(self._choices[uid]))
            for uid in sorted(sent)
        ]
        self._unsent = self._unsent - sent or _NONE
        return pb.WatchReportsRequest(acknowledged=self._acknowledged, wanted=wanted)

    def _mark_due(self) -> None:
        self._due = True
        self._on_due()
