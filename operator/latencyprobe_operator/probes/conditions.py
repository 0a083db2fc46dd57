"""The conditions of a probe: pure functions of its facts.

Ready and Stalled follow the rules of kstatus (sigs.k8s.io/cli-utils, pkg/kstatus). `helm --wait`
and Flux wait while Ready is not True, and give up when Stalled is True. So Ready is True for a
probe that has nothing to measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latencyprobe_operator.api.conditions import (
    CompleteReason,
    Condition,
    ConditionStatus,
    ConditionType,
    CoveredReason,
    ObjectivesReason,
    OverheadReason,
    ReadyReason,
    Reason,
    StalledReason,
    node_figures_refusal,
)
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.api.timestamps import epoch_s, timestamp
from latencyprobe_operator.probes.document import shorten
from latencyprobe_operator.probes.facts import ABSENT, MEASURING, NodeFacts, ProbeFacts
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome

_READY_REASONS = {
    NodeState.NO_AGENT: ReadyReason.NO_AGENT,
    NodeState.UNREACHABLE: ReadyReason.AGENT_UNREACHABLE,
    NodeState.VERSION_SKEW: ReadyReason.VERSION_SKEW,
    NodeState.REJECTED: ReadyReason.AGENT_REJECTS,
    NodeState.STALE: ReadyReason.AGENT_SILENT,
    NodeState.FAILED: ReadyReason.TARGETS_FAILED,
}

_STALLED = frozenset(map(str, StalledReason))


@dataclass(frozen=True, slots=True)
class Finding:
    """The content of a condition."""

    status: ConditionStatus
    reason: Reason
    message: str


Findings = Mapping[ConditionType, Finding]


def findings_of(facts: ProbeFacts) -> Findings:
    """Judge a probe that should measure."""
    findings = {
        ConditionType.READY: _ready(facts),
        ConditionType.COVERED: _covered(facts),
        ConditionType.WITHIN_OVERHEAD: _overhead(facts),
    }
    if facts.spec and facts.spec.objectives:
        findings[ConditionType.OBJECTIVES_MET] = _objectives(facts.objectives)
    if facts.spec and facts.spec.duration_s is not None:
        findings[ConditionType.COMPLETE] = _incomplete(facts.start_time, facts.spec.duration_s)
    if facts.problem and facts.problem.reason in _STALLED:
        findings[ConditionType.STALLED] = Finding(
            ConditionStatus.TRUE, StalledReason(facts.problem.reason), facts.problem.message
        )
    return findings


def idle_findings(facts: ProbeFacts, phase: Phase) -> Findings:
    """Describe a probe that is suspended or completed."""
    if phase is Phase.COMPLETED:
        message = "spec.duration is over: all programs are detached"
    else:
        message = "spec.suspend is true: nothing is attached"
    idle, nothing = ConditionStatus.UNKNOWN, "nothing is attached"
    findings = {
        ConditionType.READY: Finding(ConditionStatus.TRUE, ReadyReason(phase), message),
        ConditionType.COVERED: Finding(idle, CoveredReason(phase), nothing),
        ConditionType.WITHIN_OVERHEAD: Finding(idle, OverheadReason(phase), nothing),
    }
    if facts.spec and facts.spec.objectives:
        findings[ConditionType.OBJECTIVES_MET] = Finding(idle, ObjectivesReason(phase), nothing)
    if facts.spec and facts.spec.duration_s is not None:
        complete = ConditionStatus.TRUE if phase is Phase.COMPLETED else ConditionStatus.FALSE
        findings[ConditionType.COMPLETE] = Finding(complete, CompleteReason(phase), message)
    return findings


def conditions_of(findings: Findings, facts: ProbeFacts, now: str) -> tuple[Condition, ...]:
    """Return the API's conditions: lastTransitionTime moves only where the status changes."""
    before = {each.get("type"): each for each in facts.previous.get("conditions") or ()}

    def condition(name: ConditionType, finding: Finding) -> Condition:
        previous = before.get(name, {})
        unchanged = previous.get("status") == finding.status and previous.get("lastTransitionTime")
        return Condition(
            type=name,
            status=finding.status,
            reason=finding.reason,
            message=shorten(finding.message),
            last_transition_time=previous["lastTransitionTime"] if unchanged else now,
            observed_generation=facts.generation,
        )

    return tuple(condition(name, finding) for name, finding in findings.items())


def _ready(facts: ProbeFacts) -> Finding:
    if facts.problem:
        return Finding(ConditionStatus.FALSE, facts.problem.reason, facts.problem.message)
    if not facts.matched_pods:
        return Finding(
            ConditionStatus.TRUE,
            ReadyReason.NO_MATCHING_PODS,
            "no pod of this namespace matches the selector; measuring starts when one appears",
        )
    if not facts.nodes:
        return Finding(
            ConditionStatus.TRUE,
            ReadyReason.NO_RUNNING_CONTAINERS,
            "the matching pods run no container to measure; measuring starts when one does",
        )
    if any(node.attached for node in facts.nodes):
        return Finding(ConditionStatus.TRUE, ReadyReason.MEASURING, _measuring(facts.nodes))
    worst = max(facts.nodes, key=lambda node: (node.state in ABSENT, node.name))
    reason = _READY_REASONS.get(worst.state, ReadyReason.ATTACHING)
    return Finding(ConditionStatus.FALSE, reason, _about(worst))


def _measuring(nodes: Sequence[NodeFacts]) -> str:
    """Say how many nodes measure, and how many of them all that they should."""
    some = sum(node.attached > 0 for node in nodes)
    every = sum(node.attached > 0 and node.state in MEASURING for node in nodes)
    if some == every:
        return f"{every} of {len(nodes)} nodes measure every target"
    return f"{some} of {len(nodes)} nodes measure, {every} of them every target"


def _covered(facts: ProbeFacts) -> Finding:
    if not facts.nodes:
        return Finding(
            ConditionStatus.UNKNOWN, CoveredReason.NO_TARGETS, "there is nothing to cover"
        )
    # Without gaps, a node measures every stage; its message has what else is missing.
    uncovered = [node for node in facts.nodes if node.state not in MEASURING or node.gaps]
    lacking = [node for node in uncovered if node.state not in MEASURING]
    spec = facts.spec
    if not lacking and spec and spec.measured_modules != spec.modules:
        return Finding(
            ConditionStatus.FALSE,
            CoveredReason.NODE_FIGURES_NOT_ALLOWED,
            node_figures_refusal(spec.key.namespace),
        )
    if not uncovered:
        return Finding(
            ConditionStatus.TRUE,
            CoveredReason.FULLY_COVERED,
            "every stage is measured for every target",
        )
    first = (lacking or uncovered)[0]
    more = f" (and {len(uncovered) - 1} more nodes)" if len(uncovered) > 1 else ""
    if lacking:
        return Finding(ConditionStatus.FALSE, CoveredReason.NODES_NOT_COVERED, _about(first) + more)
    names = ", ".join(gap.name for gap in first.gaps)
    return Finding(
        ConditionStatus.FALSE,
        CoveredReason.STAGES_NOT_COVERED,
        f"node {first.name}: not fully measured: {names}{more}",
    )


def _overhead(facts: ProbeFacts) -> Finding:
    known = [(node.cpu_percent, node.name) for node in facts.nodes if node.cpu_percent is not None]
    if not known or not facts.spec:
        return Finding(
            ConditionStatus.UNKNOWN,
            OverheadReason.NOT_MEASURED,
            "no agent has reported the cost of its programs"
            if facts.nodes
            else "there is nothing to measure",
        )
    if stopped := [node for node in facts.nodes if node.stopped_modules]:
        return _without_modules(stopped)
    budget = facts.spec.max_cpu_percent
    cpu_percent, name = max(known)
    figures = f"{cpu_percent:.1f} % of one core on node {name}"
    if not facts.spec.node_figures:
        # It grows with the traffic of all tenants of the node.
        figures = f"more than {budget:g} % of one core on node {name}"
    if not budget:
        return Finding(
            ConditionStatus.TRUE,
            OverheadReason.NO_BUDGET,
            "spec.overhead sets no limit"
            + (f"; at most {figures}" if facts.spec.node_figures else ""),
        )
    # Two digits of a fluctuating figure would change the message with each report.
    if cpu_percent <= budget:
        return Finding(
            ConditionStatus.TRUE,
            OverheadReason.WITHIN_BUDGET,
            f"at most {budget:g} % of one core on every node",
        )
    return Finding(
        ConditionStatus.FALSE,
        OverheadReason.OVER_BUDGET,
        f"{figures}, {budget:g} % are allowed; probes of a namespace with a larger budget share "
        "these programs, or sampling is at its limit",
    )


def _without_modules(nodes: Sequence[NodeFacts]) -> Finding:
    first = nodes[0]
    names = ", ".join(first.stopped_modules)
    more = f" (and {len(nodes) - 1} more nodes)" if len(nodes) > 1 else ""
    return Finding(
        ConditionStatus.FALSE,
        OverheadReason.MODULES_STOPPED,
        f"node {first.name}: module {names} is not measured, to keep the budget{more}",
    )


def _objectives(judgements: Sequence[Judgement]) -> Finding:
    def of(outcome: ObjectiveOutcome) -> list[Judgement]:
        return [each for each in judgements if each.outcome is outcome]

    if missed := of(ObjectiveOutcome.MISSED):
        return Finding(
            ConditionStatus.FALSE, ObjectivesReason.OBJECTIVE_MISSED, _messages_of(missed)
        )
    # First, since a long message is cut: another operator goes on from their times.
    exceeded = [each for each in judgements if each.is_exceeded]
    if unknown := of(ObjectiveOutcome.UNKNOWN):
        return Finding(
            ConditionStatus.UNKNOWN,
            ObjectivesReason.INSUFFICIENT_DATA,
            _messages_of([*exceeded, *unknown]),
        )
    met = [each for each in of(ObjectiveOutcome.MET) if not each.is_exceeded]
    return Finding(ConditionStatus.TRUE, ObjectivesReason.ALL_MET, _messages_of([*exceeded, *met]))


def _messages_of(judgements: Iterable[Judgement]) -> str:
    return "; ".join(each.message for each in judgements)


def _incomplete(start_time: str | None, duration_s: float) -> Finding:
    if not start_time:
        return Finding(
            ConditionStatus.FALSE,
            CompleteReason.NOT_BEGUN,
            "spec.duration counts from the first target that is measured",
        )
    end = timestamp(epoch_s(start_time) + duration_s)
    return Finding(ConditionStatus.FALSE, CompleteReason.IN_PROGRESS, f"measures until {end}")


def _about(node: NodeFacts) -> str:
    return f"node {node.name}: {node.message or node.state}"
