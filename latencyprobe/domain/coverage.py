"""Coverage: which stages a node measures, by which hooks, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CoverageState(StrEnum):
    """How far a stage is measured on a node."""

    ACTIVE = "Active"
    PARTIAL = "Partial"
    UNAVAILABLE = "Unavailable"
    IDLE = "Idle"
    """No probe asks for it."""


COVERAGE_GAPS = frozenset({CoverageState.PARTIAL, CoverageState.UNAVAILABLE})
"""States in which figures are missing from a stage that a probe asks for."""


@dataclass(frozen=True, slots=True)
class StageCoverage:
    """One stage on a node: which hooks measure it, or why none does."""

    name: str
    state: CoverageState
    hook: str = ""
    reason: str = ""
