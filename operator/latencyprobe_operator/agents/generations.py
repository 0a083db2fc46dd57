"""Generations: the numbers of the states that one agent is sent.

A term is the time of one operator as the leader. It counts before the generation, so that a leader
need not know the numbers of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState, ProbeOnNode

LEASE_S = 300
# An agent forgets its generation when no client has connected for a lease.
IMPLAUSIBLE_RETRY_S = LEASE_S + 5.0
# How far the clock of an operator before this one may have been ahead.
MAX_AHEAD_S = 3600


class ImplausibleGenerationError(Exception):
    """An agent's generation that no operator with a sound clock has applied."""

    retry_s = IMPLAUSIBLE_RETRY_S

    def __init__(self, generation: int) -> None:
        self.generation = generation
        super().__init__(
            f"the agent reports generation {generation}, over {MAX_AHEAD_S} s ahead of the "
            "operator's clock. Check the clocks of both nodes, or restart the agent. The next "
            f"attempt is in {IMPLAUSIBLE_RETRY_S:g} s, after the agent's lease"
        )


class NewerTermError(Exception):
    """An agent that follows an operator of a newer term, or says so."""

    def __init__(self, theirs: int, ours: int) -> None:
        self.theirs, self.ours = theirs, ours
        super().__init__(
            f"the agent follows an operator of term {theirs}; this operator's is {ours}. Another "
            "operator leads, or the Lease has been restored to an older state: the agent then "
            f"forgets its term {LEASE_S} s after its last client"
        )


class Generations:
    """The numbers of one agent's states: they grow, and begin at the wall clock.

    So they grow over restarts of the operator too. Each agent has its own, since they follow its
    reports: an agent that lies disables itself.
    """

    __slots__ = ("_clock_ns", "_last")

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0

    def next(self) -> int:
        """Return a number above all before."""
        self._last = max(self._last + 1, self._clock_ns())
        return self._last

    def observe(self, generation: int) -> None:
        """Go beyond a number that the agent holds: another clock was ahead of ours.

        Raises ImplausibleGenerationError for one that no clock explains.
        """
        if generation > max(self._last, self._clock_ns() + MAX_AHEAD_S * 10**9):
            raise ImplausibleGenerationError(generation)
        self._last = max(self._last, generation)


class MeasuredSince:
    """The first generation in which each probe has its present modules and filter.

    A report on an older generation, or of an older term, was measured with others.
    """

    __slots__ = ("_since", "_state", "_term")

    def __init__(self, term: int = 0) -> None:
        self._term = term
        self._state = NO_STATE
        self._since: tuple[int, ...] = ()
        """The generations of the state's probes."""

    def apply(self, state: DesiredNodeState, generation: int) -> None:
        """Note a state that is about to be applied under this generation."""
        before = {
            (probe.key.uid, _measured(probe)): since
            for probe, since in zip(self._state, self._since, strict=True)
        }
        self._since = tuple(
            before.get((probe.key.uid, _measured(probe)), generation) for probe in state
        )
        self._state = state

    def covers(self, probe_uid: str, term: int, generation: int) -> bool:
        """Decide whether a report of this generation is one on the probe as it is now.

        An agent without terms, in reports of term 0, is believed by the generation alone.
        """
        if term not in (0, self._term):
            return False
        return any(
            probe.key.uid == probe_uid and generation >= since
            for probe, since in zip(self._state, self._since, strict=True)
        )


def _measured(probe: ProbeOnNode) -> tuple[object, ...]:
    """Return the parts of a probe that change what its figures mean."""
    return (probe.modules, probe.ports, probe.protocols, probe.node_figures)
