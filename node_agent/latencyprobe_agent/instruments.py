"""The contract between the agent and what shows its own state, such as its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState


class Instruments(Protocol):
    """What the agent says about itself while it works."""

    def show_modules(self, loaded: Iterable[Module]) -> None:
        """Say which modules are loaded."""

    def show_targets(self, counts: Mapping[TargetState, int]) -> None:
        """Say how many targets are in which state."""

    def note_reading(self, cpu_percent: float | None) -> None:
        """Count a reading of the engine; the programs' CPU time, None where it is not known."""

    def time_apply(self) -> AbstractContextManager[object]:
        """Time what is done inside: the adoption of a desired state."""
