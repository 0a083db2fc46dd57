"""Modules, and UDP, that probes want and that are not loaded yet, as the coverage reports them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from latencyprobe.domain.coverage import NO_DATAGRAMS, CoverageState, StageCoverage
from latencyprobe.domain.stages import BY_NAME, Module, counters_of


@dataclass(frozen=True, slots=True)
class WaitingModules:
    """Modules that wait, beside those that are loaded.

    `due_at`: when they will be loaded, by the monotonic clock. `due_unix_ns`: the same for people;
    it does not count for equality. `failure`: the engine's message, if the last attempt failed.
    `udp`: the programs for datagrams wait, beside a loaded module that uses them.
    """

    modules: frozenset[Module]
    loaded: frozenset[Module]
    interval_s: float
    due_at: float
    due_unix_ns: int = field(compare=False)
    failure: str = ""
    udp: bool = False

    @property
    def reason(self) -> str:
        """Why they are not loaded, and when they will be."""
        names = ", ".join(module for module in Module if module in self.modules)
        what = f"modules {names}" if len(self.modules) > 1 else f"module {names}"
        if self.udp:
            what = f"{what} and UDP" if self.modules else "UDP"
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
            else self._with_udp(stage)
            for stage in coverage
        )
        known = {stage.name for stage in coverage}
        counters = (
            StageCoverage(name, CoverageState.UNAVAILABLE, reason=reason)
            for name in counters_of(self.modules)
            if name not in known
        )
        return (*stages, *counters)

    def _with_udp(self, stage: StageCoverage) -> StageCoverage:
        """Return a stage that is measured for TCP alone with the reason why UDP is missing."""
        if not self.udp or NO_DATAGRAMS not in stage.reason:
            return stage
        reason = stage.reason.replace(NO_DATAGRAMS, f"UDP is not measured: {self.reason}")
        return replace(stage, state=CoverageState.PARTIAL, reason=reason)
