"""The states that one agent was sent, over all its sessions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from latencyprobe.domain.fairness import TargetName
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.generations import (
    LEASE_S,
    Generations,
    MeasuredSince,
    NewerTermError,
)
from latencyprobe_operator.agents.messages import Outgoing, SentTargets, outgoing_state
from latencyprobe_operator.desired_state import DesiredNodeState

_SortedTargets = Mapping[str, tuple[str, ...]]
"""The ids of the targets in a message, by probe, in ascending order.

A set of ten takes 730 bytes, a tuple 120: an operator keeps them of each node.
"""


def _sorted(sent: SentTargets) -> _SortedTargets:
    return {probe_uid: tuple(sorted(ids)) for probe_uid, ids in sent.items()}


@dataclass(frozen=True, slots=True)
class _AnyOf:
    """The targets of some states, which are too many to copy for every report."""

    states: tuple[_SortedTargets, ...]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, tuple):
            return False
        probe_uid, target_id = name
        return any(_holds(each.get(probe_uid, ()), target_id) for each in self.states)


def _holds(ids: tuple[str, ...], target_id: str) -> bool:
    at = bisect_left(ids, target_id)
    return at < len(ids) and ids[at] == target_id


class SentStates:
    """Encodes the states of one agent, and remembers what the agent's reports refer to."""

    __slots__ = ("_before", "_generations", "_pending", "_since", "_targets", "pods", "term")

    def __init__(self, clock_ns: Callable[[], int], term: int = 0) -> None:
        self.term = term
        self.pods = AskedPods()
        self._generations = Generations(clock_ns)
        self._since = MeasuredSince(term)
        self._targets: _SortedTargets = {}
        self._before: _SortedTargets = {}
        self._pending: _SortedTargets = {}

    def encode(self, state: DesiredNodeState) -> Outgoing:
        """Return this state as the next message. Targets that the agent has keep their places."""
        generation = self._generations.next()
        outgoing = outgoing_state(
            state,
            generation=generation,
            lease_s=LEASE_S,
            term=self.term,
            held=_AnyOf((self._targets,)),
        )
        self._since.apply(state, generation)
        self.pods.ask(state)
        self._pending = _sorted(outgoing.sent)
        return outgoing

    def mark_applied(self, outgoing: Outgoing) -> None:
        """Note that the agent has applied this message."""
        self._before, self._targets = self._targets, _sorted(outgoing.sent)
        self._pending = {}

    def asked(self) -> Container[TargetName]:
        """Return the targets that a report may be on.

        They are those of the state in force, of the one being sent, and of the one before: its
        last report may still arrive.
        """
        return _AnyOf((self._targets, self._pending, self._before))

    def observe(self, term: int, generation: int) -> None:
        """Go beyond the generation of a report of our term, or of an agent without terms.

        Raises ImplausibleGenerationError, and NewerTermError for a term above ours. Such an agent
        loses its own link alone.
        """
        if term > self.term:
            raise NewerTermError(term, self.term)
        if term in (0, self.term):
            self._generations.observe(generation)

    def covers(self, probe_uid: str, term: int, generation: int) -> bool:
        """Decide whether a report of this generation is one on the probe as it is now."""
        return self._since.covers(probe_uid, term, generation)
