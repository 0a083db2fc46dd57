"""The contract between the agent and the displays of its own state, such as its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState


class Instruments(Protocol):
    """The agent's reports on itself."""

    def show_modules(self, loaded: Iterable[Module]) -> None:
        """Report the loaded modules."""

    def show_targets(self, counts: Mapping[TargetState, int]) -> None:
        """Report the number of targets by state."""

    def show_budget(self, cpu_percent: float) -> None:
        """Report the budget of the programs in percent of one core; 0 for none."""

    def show_missed_pods(self, number: int) -> None:
        """Report the number of pods since the start that ended before they could be measured."""

    def note_reading(self, cpu_percent: float | None, missed_runs: int) -> None:
        """Count a reading of the engine; report the programs' cost, None if unknown.

        `missed_runs`: those of the programs since the start.
        """

    def time_apply(self) -> AbstractContextManager[object]:
        """Time the adoption of a desired state, which runs inside."""
