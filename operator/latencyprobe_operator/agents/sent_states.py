"""The states that one agent was sent, over all its sessions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from latencyprobe.domain.fairness import TargetName
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.generations import (
    LEASE_S,
    Generations,
    MeasuredSince,
    NewerTermError,
)
from latencyprobe_operator.agents.messages import Outgoing, outgoing_state
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState


@dataclass(frozen=True, slots=True)
class _SentState:
    """A state that was sent, but for some of its targets. An operator keeps the state anyway."""

    state: DesiredNodeState = NO_STATE
    left_out: frozenset[TargetName] = frozenset()

    def targets(self) -> Iterator[TargetName]:
        """Yield the names of the targets, which are made for that."""
        for probe in self.state:
            for target_id in probe.target_ids():
                name = (probe.key.uid, target_id)
                if name not in self.left_out:
                    yield name


_NOTHING_SENT = _SentState()


class _AnyOf:
    """The targets of some states. Their names are made for the first one that is looked up.

    Most reports name no target.
    """

    def __init__(self, *states: _SentState) -> None:
        self._states = states

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @functools.cached_property
    def _names(self) -> frozenset[TargetName]:
        return frozenset(name for state in self._states for name in state.targets())


class SentStates:
    """Encodes the states of one agent, and remembers what the agent's reports refer to."""

    __slots__ = ("_before", "_generations", "_now", "_pending", "_since", "pods", "term")

    def __init__(self, clock_ns: Callable[[], int], term: int = 0) -> None:
        self.term = term
        self.pods = AskedPods()
        self._generations = Generations(clock_ns)
        self._since = MeasuredSince(term)
        self._now = self._before = self._pending = _NOTHING_SENT

    def encode(self, state: DesiredNodeState) -> Outgoing:
        """Return this state as the next message. Targets that the agent has keep their places."""
        generation = self._generations.next()
        outgoing = outgoing_state(
            state,
            generation=generation,
            lease_s=LEASE_S,
            term=self.term,
            held=_AnyOf(self._now),
        )
        self._since.apply(state, generation)
        self.pods.ask(state)
        everything, sent = _SentState(state), outgoing.targets
        left_out = frozenset(name for name in everything.targets() if name not in sent)
        self._pending = _SentState(state, left_out) if left_out else everything
        return outgoing

    def mark_applied(self) -> None:
        """Note that the agent has applied the last message."""
        self._before, self._now, self._pending = self._now, self._pending, _NOTHING_SENT

    def asked(self) -> Container[TargetName]:
        """Return the targets that a report may be on.

        They are those of the state in force, of the one being sent, and of the one before: its
        last report may still arrive.
        """
        return _AnyOf(self._now, self._pending, self._before)

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
