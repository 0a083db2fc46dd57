"""The observed state: agents, their targets and their reports, as values.

The agents' side decodes messages into these values once, on arrival; the probes' side reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
)
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import PodReport, ProbeSummary
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.model import ContainerTarget


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """The state of one target at its agent.

    `is_partial`: a part of its packets is lost. `message` has the reason for that, or for not being
    attached.
    """

    state: TargetState
    message: str
    is_partial: bool = False


ATTACHED = TargetStatus(TargetState.ATTACHED, "")
"""The status of nearly all targets of a cluster."""
UNKNOWN_TARGET = TargetStatus(TargetState.PENDING, "")
"""The status of a target that an agent has not answered for."""


@dataclass(frozen=True, slots=True)
class AgentView:
    """The operator's view of one agent. READY: the agent has applied the last state it was sent.

    `applied` has the targets of the applied state, by probe. `others` has the statuses of those
    that are not just ATTACHED, by probe and target id.
    """

    state: NodeState
    message: str = ""
    coverage: Mapping[str, StageCoverage] = field(default_factory=dict)
    applied: Mapping[str, Sequence[ContainerTarget]] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, TargetStatus]] = field(default_factory=dict)
    cpu_percent: float | None = None
    version: str = ""
    """The agent's version, as it states it."""
    stopped_modules: tuple[Module, ...] = ()
    """The modules that the budget of its node has no room for."""
    unknown: tuple[str, ...] = ()
    """Names of covered stages and counters that this operator does not know."""

    def statuses_of(
        self, probe_uid: str, targets: Sequence[ContainerTarget]
    ) -> Sequence[TargetStatus]:
        """Return the statuses of these targets of a probe, in their order."""
        applied, others = self.applied.get(probe_uid, ()), self.others.get(probe_uid)
        # Mostly, they are the very objects of the applied state. Then no id is made.
        if not others and {*map(id, applied)}.issuperset(map(id, targets)):
            return [ATTACHED] * len(targets)
        known = {target.id: ATTACHED for target in applied} | dict(others or {})
        return [known.get(target.id, UNKNOWN_TARGET) for target in targets]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedTarget:
    """One target's part of a report."""

    id: str
    status: TargetStatus
    measurement: Measurement = NOTHING
    """Empty if it is corrupt."""
    unknown_stages: tuple[str, ...] = ()
    """Names of stages that this operator does not know; `measurement` lacks them."""
    corruption: str | None = None
    """The contradiction in the measurement; None: it is sound."""


@dataclass(frozen=True, slots=True)
class Span:
    """The newest interval of a report, in seconds since the epoch by the agent's clock."""

    begin: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class ReportSource:
    """The instance of the agent that sent a report, and the stream that brought it."""

    instance_id: str = ""
    stream: int = 0


UNKNOWN_SOURCE = ReportSource()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedProbe:
    """One agent's report on one probe, decoded and checked.

    With a summary: all pods over the window. With pods alone: pods in full that belong to the
    summary before. With neither: the targets of one interval, from an older agent.
    """

    probe_uid: str
    targets: tuple[ReportedTarget, ...] = ()
    unasked: int = 0
    """The number of targets that the agent was not asked for, and that were left out."""
    node: NodeMeasurement = NOTHING_OF_THE_NODE
    """The measurement of the node as a whole; empty if it is corrupt."""
    node_corruption: str | None = None
    """The contradiction in that measurement; None: it is sound."""
    is_complete: bool = True
    """No other part of the report follows."""
    summary: ProbeSummary | None = None
    pods: tuple[PodReport, ...] = ()
    """Pods in full."""
    corruption: str | None = None
    """The contradiction in the summary or the pods, which are left out; None: they are sound."""
    unknown: tuple[str, ...] = ()
    """Names of a newer agent that this operator does not know.

    Sums and verdicts lack them. Pods in full have counters and pending waits with plain names.
    """
    span: Span = Span()
    source: ReportSource = UNKNOWN_SOURCE
