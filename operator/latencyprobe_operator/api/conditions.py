"""The conditions of a LatencyProbe: their types, and the reasons that each can have.

docs/api.md explains every reason to users, and advises them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """The name of a condition."""

    READY = "Ready"
    """At least one node measures, or there is nothing to measure."""
    COVERED = "Covered"
    """Every node measures every stage."""
    WITHIN_OVERHEAD = "WithinOverhead"
    """The programs keep to the budget."""
    OBJECTIVES_MET = "ObjectivesMet"
    """The pods keep to the objectives; absent without objectives."""
    COMPLETE = "Complete"
    """The time of spec.duration is over; absent without spec.duration."""
    STALLED = "Stalled"
    """The spec cannot be carried out; absent otherwise, as kstatus expects."""


class ConditionStatus(StrEnum):
    """The status of a metav1.Condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ReadyReason(StrEnum):
    """Reasons of Ready."""

    MEASURING = "Measuring"
    """At least one target is attached."""
    ATTACHING = "Attaching"
    """An agent is connecting, or has not found or attached the targets yet."""
    LISTING_PODS = "ListingPods"
    """The API server has not listed the pods yet."""
    NO_MATCHING_PODS = "NoMatchingPods"
    """No pod of the namespace matches the selector."""
    NO_RUNNING_CONTAINERS = "NoRunningContainers"
    """The matching pods run no container to measure."""
    INVALID_SELECTOR = "InvalidSelector"
    """The API server refuses the selector."""
    INVALID_SPEC = "InvalidSpec"
    """The spec cannot be carried out."""
    ABOVE_LIMIT = "AboveLimit"
    """The spec, or the number of probes, exceeds a limit of the administrator."""
    NODE_FIGURES_NOT_ALLOWED = "NodeFiguresNotAllowed"
    """The spec asks for figures of whole nodes alone; the administrator does not allow them."""
    PODS_UNAVAILABLE = "PodsUnavailable"
    """The operator may not list the pods."""
    NO_AGENT = "NoAgent"
    """No agent runs on the node."""
    AGENT_UNREACHABLE = "AgentUnreachable"
    """The operator cannot connect to the agent."""
    VERSION_SKEW = "VersionSkew"
    """Operator and agent speak different protocol versions."""
    AGENT_REJECTS = "AgentRejects"
    """The agent refuses its desired state."""
    AGENT_SILENT = "AgentSilent"
    """The agent is connected, but does not report."""
    TARGETS_FAILED = "TargetsFailed"
    """The agent cannot measure a container."""
    SUSPENDED = "Suspended"
    """The field spec.suspend is true."""
    COMPLETED = "Completed"
    """The time of spec.duration is over."""


class CoveredReason(StrEnum):
    """Reasons of Covered."""

    FULLY_COVERED = "FullyCovered"
    """Every stage is measured for every target."""
    STAGES_NOT_COVERED = "StagesNotCovered"
    """Every target is measured, but not every stage."""
    NODE_FIGURES_NOT_ALLOWED = "NodeFiguresNotAllowed"
    """The module `irq` is left out: the administrator does not allow figures of whole nodes."""
    NODES_NOT_COVERED = "NodesNotCovered"
    """Some nodes do not measure their targets."""
    NO_TARGETS = "NoTargets"
    """There is nothing to cover."""
    SUSPENDED = "Suspended"
    """The field spec.suspend is true."""
    COMPLETED = "Completed"
    """The time of spec.duration is over."""


class OverheadReason(StrEnum):
    """Reasons of WithinOverhead."""

    WITHIN_BUDGET = "WithinBudget"
    """Every node keeps to the budget."""
    NO_BUDGET = "NoBudget"
    """The budget is 0, so there is no limit."""
    OVER_BUDGET = "OverBudget"
    """A node exceeds the budget."""
    MODULES_STOPPED = "ModulesStopped"
    """A node measures without some of the modules, to keep the budget."""
    NOT_MEASURED = "NotMeasured"
    """No agent has reported the cost of its programs."""
    SUSPENDED = "Suspended"
    """The field spec.suspend is true."""
    COMPLETED = "Completed"
    """The time of spec.duration is over."""


class ObjectivesReason(StrEnum):
    """Reasons of ObjectivesMet."""

    ALL_MET = "AllMet"
    """Every objective is met, or exceeded for less than its `for`."""
    OBJECTIVE_MISSED = "ObjectiveMissed"
    """At least one objective is missed."""
    INSUFFICIENT_DATA = "InsufficientData"
    """The window has too few samples of a stage."""
    SUSPENDED = "Suspended"
    """The field spec.suspend is true."""
    COMPLETED = "Completed"
    """The time of spec.duration is over."""


class CompleteReason(StrEnum):
    """Reasons of Complete."""

    COMPLETED = "Completed"
    """The time of spec.duration is over."""
    IN_PROGRESS = "InProgress"
    """The time of spec.duration is not over."""
    NOT_BEGUN = "NotBegun"
    """No target has been measured yet, so spec.duration does not count yet."""
    SUSPENDED = "Suspended"
    """The field spec.suspend is true."""


class StalledReason(StrEnum):
    """Reasons of Stalled: those of Ready that do not pass by waiting."""

    INVALID_SELECTOR = "InvalidSelector"
    """The API server refuses the selector."""
    INVALID_SPEC = "InvalidSpec"
    """The spec cannot be carried out."""
    ABOVE_LIMIT = "AboveLimit"
    """The spec, or the number of probes, exceeds a limit of the administrator."""
    NODE_FIGURES_NOT_ALLOWED = "NodeFiguresNotAllowed"
    """The spec asks for figures of whole nodes alone; the administrator does not allow them."""


Reason = (
    ReadyReason | CoveredReason | OverheadReason | ObjectivesReason | CompleteReason | StalledReason
)

REASONS: Mapping[ConditionType, type[Reason]] = {
    ConditionType.READY: ReadyReason,
    ConditionType.COVERED: CoveredReason,
    ConditionType.WITHIN_OVERHEAD: OverheadReason,
    ConditionType.OBJECTIVES_MET: ObjectivesReason,
    ConditionType.COMPLETE: CompleteReason,
    ConditionType.STALLED: StalledReason,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One metav1.Condition."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str
    last_transition_time: str
    observed_generation: int


def node_figures_refusal(namespace: str) -> str:
    """Return the message on a module that would show a namespace what other tenants do."""
    return (
        "module irq measures whole nodes, all tenants together; the administrator has not allowed "
        f"that in namespace {namespace}. Leave irq out of spec.modules, or have the administrator "
        f"add {namespace} to operator.nodeFiguresNamespaces"
    )
