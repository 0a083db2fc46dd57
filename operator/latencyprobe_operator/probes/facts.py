"""The facts that a status is built from, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.measurement import NOTHING, Measurement, NodeMeasurement
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.stages import Module
from latencyprobe_operator.api.conditions import ReadyReason
from latencyprobe_operator.api.spec import ProbeSpec
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes.objectives import Judgement

MEASURING = frozenset({NodeState.PARTIAL, NodeState.READY})
"""States in which every target on the node is measured, though perhaps not every stage."""

ABSENT = frozenset(
    {
        NodeState.NO_AGENT,
        NodeState.UNREACHABLE,
        NodeState.VERSION_SKEW,
        NodeState.REJECTED,
        NodeState.STALE,
    }
)
"""States in which the operator gets no figures of the node."""

UNSETTLED = frozenset({NodeState.ATTACHING, NodeState.CONNECTING})
"""States of an agent that is yet to measure."""

LACKING = ABSENT | {NodeState.FAILED}
"""States in which a probe that has measured is degraded."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node that runs targets of the probe."""

    name: str
    state: NodeState
    message: str = ""
    gaps: tuple[StageCoverage, ...] = ()
    attached: int = 0
    """Number of the probe's targets that are measured there."""
    cpu_percent: float | None = None
    """The cost of the node's programs, in percent of one core; None where it is unknown."""
    stopped_modules: tuple[Module, ...] = ()
    """Those of the probe's modules that the budget of the node has no room for."""
    last_report: float | None = None
    """Time of its last report on the probe, in seconds since the epoch, if no report is due."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod that is listed. `ended`: it was measured, and is no target any more."""

    name: str
    node: str
    containers: tuple[str, ...]
    report: TargetReport
    ended: bool = False


class AccusedCause(NamedTuple):
    """A cause that verdicts on pods name: the number of these pods, and its waiting."""

    pods: int
    waiting_ns: int

    def joined(self, other: AccusedCause) -> AccusedCause:
        """Return both together."""
        return AccusedCause(self.pods + other.pods, self.waiting_ns + other.waiting_ns)


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why a probe cannot measure at all, for the condition Ready."""

    reason: ReadyReason
    message: str


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """All facts that one status is built from. Large, because each part of a status is a field.

    `pods` are in order, the worst first.
    """

    spec: ProbeSpec | None
    generation: int
    phase: Phase | None = None
    """SUSPENDED or COMPLETED if the probe is; None: the other facts decide."""
    problem: Problem | None = None
    matched_pods: int = 0
    containers: int = 0
    nodes: Sequence[NodeFacts] = ()
    pods: Sequence[PodFacts] = ()
    omitted_pods: int = 0
    merged: Measurement = NOTHING
    accused: Mapping[Bottleneck, AccusedCause] = field(default_factory=dict)
    """The causes that verdicts on pods name, also on pods that are not listed."""
    node_context: Mapping[str, NodeMeasurement] = field(default_factory=dict)
    """The measurements of nodes as a whole, by their names."""
    objectives: Sequence[Judgement] = ()
    unobserved_s: int = 0
    """The longest unobserved part of a node's window."""
    start_time: str | None = None
    measured_s: int | None = None
    """The part of spec.duration that has passed."""
    last_report_time: str | None = None
    previous: Mapping[str, Any] = field(default_factory=dict)
    """The status as it stands in the API server."""
