"""Leadership by a Lease: pure state, from records of the Lease and a monotonic clock.

Clocks of different nodes are never compared. A candidate takes a Lease that it has not seen change
for the Lease's duration. A leader counts its own duration from before the request that renewed it:
so it ends before anyone else's.

A *term* is one holder's time as the leader: `spec.leaseTransitions` + 1. It grows with each change
of holder, and at least as fast as half the seconds since 2025. So a Lease that was deleted, or
restored from a backup, continues above the terms that the agents know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from latencyprobe.process.clocks import boot_clock
from latencyprobe_operator.kube.lease import FREE, MAX_TRANSITIONS, LeaseRecord

# 2025-01-01T00:00:00Z; the API's field holds steps of this length until the year 2161.
_TERMS_BEGAN_S = 1_735_689_600
_TERM_STEP_S = 2


class TimingError(ValueError):
    """Times of a Lease that contradict each other."""


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """The times of a Lease.

    `duration_s`: others take a Lease that was not renewed for this long. `renew_deadline_s`: a
    leader that has not renewed it for this long writes no more. `retry_s`: between two attempts.
    """

    duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration_s > self.renew_deadline_s > self.retry_s > 0:
            raise TimingError(
                f"the Lease's duration ({self.duration_s:g} s) must be longer than the renew "
                f"deadline ({self.renew_deadline_s:g} s), and that longer than the retry period "
                f"({self.retry_s:g} s), above 0"
            )


class LeadershipLostError(Exception):
    """A Lease that another operator holds, or that is gone."""

    def __init__(self, lease: str, record: LeaseRecord | None) -> None:
        reason = "it was deleted"
        if record is not None:
            reason = f"{record.holder or 'no operator'} holds it"
        super().__init__(f"lost the Lease {lease}: {reason}")


class Leadership:
    """One candidate's view of the Lease, and its own hold on it. `clock`: monotonic seconds."""

    def __init__(
        self, identity: str, timing: LeaseTiming, clock: Callable[[], float] = boot_clock
    ) -> None:
        self.identity = identity
        self.timing = timing
        self.clock = clock
        self._seen: LeaseRecord | None = None
        self._seen_at = clock()
        self._most_transitions = 0
        self._held: LeaseRecord | None = None
        self._renewed_at = 0.0

    # ------------------------------------------------------------------ as the leader

    @property
    def term(self) -> int:
        """The present term as the leader; 0: not the leader."""
        return self._held.transitions + 1 if self._held else 0

    def remaining_s(self) -> float:
        """Return for how long the Lease is held; 0 after the renew deadline, and if it is lost.

        Between the renew deadline and the end of the Lease nothing new begins. Requests that have
        begun may end.
        """
        age_s = self.clock() - self._renewed_at
        if self._held is None or age_s >= self.timing.renew_deadline_s:
            return 0.0
        return self.timing.duration_s - age_s

    def hold(self, record: LeaseRecord, *, sent_at: float) -> None:
        """Note that our write of this record, begun at `sent_at`, has succeeded."""
        self.see(record)
        self._held, self._renewed_at = record, sent_at

    def still_holds(self, record: LeaseRecord | None) -> bool:
        """Decide whether this record, read as the leader, is of the present term."""
        return (
            record is not None
            and self._held is not None
            and (record.holder, record.transitions) == (self.identity, self._held.transitions)
        )

    def lose(self) -> None:
        """Give the Lease up: from now on nothing is written."""
        self._held = None

    # ---------------------------------------------------------------- as a candidate

    def see(self, record: LeaseRecord | None) -> None:
        """Take in the Lease as it was just read; None: it does not exist."""
        if record != self._seen:
            self._seen_at = self.clock()
        if record is not None:
            self._most_transitions = max(self._most_transitions, record.transitions)
        self._seen = record

    def free_in_s(self) -> float:
        """Return the seconds until this candidate may take the Lease, if it does not change."""
        seen = self._seen
        if seen is None or seen.holder in ("", self.identity):
            return 0.0
        duration_s = seen.duration_s or self.timing.duration_s
        return max(self._seen_at + duration_s - self.clock(), 0.0)

    def proposal(self, wall: float) -> LeaseRecord:
        """Return the record to write: the Lease renewed, or taken. `wall`: the wall clock."""
        seen = self._seen or FREE
        if seen.holder == self.identity:
            return seen.renew(wall)
        since_epoch = int((wall - _TERMS_BEGAN_S) // _TERM_STEP_S)
        transitions = max(self._most_transitions + 1, since_epoch)
        return seen.acquire(
            self.identity,
            self.timing.duration_s,
            min(transitions, MAX_TRANSITIONS),
            now=wall,
        )
