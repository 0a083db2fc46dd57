"""The modules that probes want and that are not loaded yet, as the coverage reports them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME, Module, counters_of


@dataclass(frozen=True, slots=True)
class WaitingModules:
    """Modules that wait, beside those that are loaded.

    `due_at`: when they will be loaded, by the monotonic clock. `due_unix_ns`: the same for people;
    it does not count for equality. `failure`: the engine's message, if the last attempt failed.
    """

    modules: frozenset[Module]
    loaded: frozenset[Module]
    interval_s: float
    due_at: float
    due_unix_ns: int = field(compare=False)
    failure: str = ""

    @property
    def reason(self) -> str:
        """Why they are not loaded, and when they will be."""
        names = ", ".join(module for module in Module if module in self.modules)
        what = f"modules {names}" if len(self.modules) > 1 else f"module {names}"
        due = f"{datetime.fromtimestamp(round(self.due_unix_ns / 1e9), UTC):%H:%M:%S} UTC"
        if self.failure:
            return f"cannot load {what}: {self.failure}; next attempt at {due}"
        return (
            f"{what} not loaded yet: a node changes its modules at most once per "
            f"{self.interval_s:g} s; due at {due}"
        )

    def within(self, coverage: tuple[StageCoverage, ...]) -> tuple[StageCoverage, ...]:
        """Return the engine's coverage with the stages and counters that wait."""
        wanted, reason = self.loaded | self.modules, self.reason
        stages = (
            StageCoverage(stage.name, CoverageState.UNAVAILABLE, reason=reason)
            if stage.state is CoverageState.IDLE and BY_NAME[stage.name].is_measured_by(wanted)
            else stage
            for stage in coverage
        )
        known = {stage.name for stage in coverage}
        counters = (
            StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason)
            for name in counters_of(self.modules)
            if name not in known
        )
        return (*stages, *counters)
