"""Coverage: the stages that a node measures, by which hooks, and why the others are missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class CoverageState(StrEnum):
    """The state of a stage on a node: measured in full, in part or not at all."""

    ACTIVE = "Active"
    PARTIAL = "Partial"
    UNAVAILABLE = "Unavailable"
    IDLE = "Idle"
    """No probe asks for it."""


NO_DATAGRAMS = "no probe asks for UDP"
"""The reason of a stage that is measured for TCP alone, since that is all that probes ask for."""

MEASURED = frozenset({CoverageState.ACTIVE, CoverageState.PARTIAL})
"""States in which a stage has figures."""

COVERAGE_GAPS = frozenset({CoverageState.PARTIAL, CoverageState.UNAVAILABLE})
"""States in which figures are missing from a stage that a probe asks for."""


@dataclass(frozen=True, slots=True)
class StageCoverage:
    """One stage on a node: the hooks that measure it, or the reason why it is missing."""

    name: str
    state: CoverageState
    hook: str = ""
    reason: str = ""

    def also(self, reason: str, state: CoverageState) -> StageCoverage:
        """Return this coverage in that state, with one more reason."""
        return replace(self, state=state, reason="; ".join(filter(None, (self.reason, reason))))
