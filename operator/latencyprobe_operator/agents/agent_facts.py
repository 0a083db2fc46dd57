"""The last known facts of one agent: its instance, coverage, targets and overhead."""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState
from latencyprobe_operator.observed_state import (
    ATTACHED,
    UNKNOWN_TARGET,
    AgentView,
    ReportedProbe,
    TargetStatus,
)

StatusesByProbe = Mapping[str, Mapping[str, TargetStatus]]
"""The statuses of targets by probe and target id."""


class AgentFacts:
    """The facts that an agent's answers and reports have stated last, over all its sessions.

    Of the targets, only the statuses are kept that are not just ATTACHED.
    """

    __slots__ = (
        "_applied",
        "_misreports",
        "_others",
        "coverage",
        "cpu_percent",
        "instance_id",
        "stopped_modules",
        "unknown",
        "version",
    )

    def __init__(self, misreports: Misreports) -> None:
        self.instance_id = ""
        self.version = ""
        self.coverage: Mapping[str, StageCoverage] = {}
        self.cpu_percent: float | None = None
        self.stopped_modules: tuple[Module, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self._misreports = misreports
        self._applied: DesiredNodeState = NO_STATE
        self._others: dict[str, dict[str, TargetStatus]] = {}

    def begin_instance(self, instance_id: str) -> None:
        """Forget the targets of the instance before."""
        self.instance_id = instance_id
        self._applied, self._others = NO_STATE, {}

    def set_targets(
        self, state: DesiredNodeState, answered: StatusesByProbe, left_out: StatusesByProbe
    ) -> None:
        """Take in an applied state, its answer, and the targets that the operator left out."""
        self._applied, self._others = state, {}
        for probe in state:
            uid = probe.key.uid
            known = {**answered.get(uid, {}), **left_out.get(uid, {})}
            statuses = {each: known.get(each, UNKNOWN_TARGET) for each in probe.target_ids()}
            self._set(uid, statuses)

    def _set(self, probe_uid: str, statuses: Mapping[str, TargetStatus]) -> None:
        others = {each: status for each, status in statuses.items() if status != ATTACHED}
        if others:
            self._others[probe_uid] = others
        else:
            self._others.pop(probe_uid, None)

    def take_targets(self, report: ReportedProbe) -> bool:
        """Take in the states of known targets; return whether one has changed."""
        if not report.targets:
            return False
        uid = report.probe_uid
        known = {
            each: ATTACHED
            for probe in self._applied
            if probe.key.uid == uid
            for each in probe.target_ids()
        }
        known |= self._others.get(uid, {})
        changed = False
        for target in report.targets:
            before, now = known.get(target.id), target.status
            if before and now != before:
                known[target.id] = now
                changed = True
                if now.state is TargetState.FAILED:
                    self._misreports.note_failed(target.id, now.message)
        if changed:
            self._set(uid, known)
        return changed

    def view(self, state: NodeState, message: str) -> AgentView:
        """Return the facts together with the state of the connection."""
        return AgentView(
            state,
            message,
            self.coverage,
            {probe.key.uid: probe.targets for probe in self._applied},
            self._others,
            self.cpu_percent,
            self.version,
            self.stopped_modules,
            self.unknown,
        )
