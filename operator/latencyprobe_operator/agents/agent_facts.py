"""The last known facts of one agent: its instance, coverage, targets and overhead."""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.observed_state import AgentView, ReportedProbe, TargetStatus

TargetsByProbe = dict[str, dict[str, TargetStatus]]


class AgentFacts:
    """The facts that an agent's answers and reports have stated last, over all its sessions."""

    __slots__ = (
        "_misreports",
        "_targets",
        "coverage",
        "cpu_percent",
        "instance_id",
        "stopped_modules",
        "version",
    )

    def __init__(self, misreports: Misreports) -> None:
        self.instance_id = ""
        self.version = ""
        self.coverage: Mapping[str, StageCoverage] = {}
        self.cpu_percent: float | None = None
        self.stopped_modules: tuple[Module, ...] = ()
        self._misreports = misreports
        self._targets: TargetsByProbe = {}

    def begin_instance(self, instance_id: str) -> None:
        """Forget the targets of the instance before."""
        self.instance_id = instance_id
        self._targets = {}

    def set_targets(
        self, answered: TargetsByProbe, left_out: Mapping[str, Mapping[str, TargetStatus]]
    ) -> None:
        """Take in the targets of an applied state, and those that the operator left out of it."""
        self._targets = answered
        for probe_uid, targets in left_out.items():
            self._targets.setdefault(probe_uid, {}).update(targets)

    def take_targets(self, report: ReportedProbe) -> bool:
        """Take in the states of known targets; return whether one has changed."""
        known = self._targets.get(report.probe_uid)
        if known is None:
            return False
        changed = False
        for target in report.targets:
            before, now = known.get(target.id), target.status
            if before and now != before:
                known[target.id] = now
                changed = True
                if now.state is TargetState.FAILED:
                    self._misreports.note_failed(target.id, now.message)
        return changed

    def view(self, state: NodeState, message: str) -> AgentView:
        """Return the facts together with the state of the connection."""
        return AgentView(
            state,
            message,
            self.coverage,
            self._targets,
            self.cpu_percent,
            self.version,
            self.stopped_modules,
        )
