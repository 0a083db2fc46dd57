"""The status document of a probe: a pure function of what is known at one moment.

Bounded whatever the cluster's size (MAX_BYTES), and equal for equal facts, so that a write can be
left out where nothing changed. `merge_patch` then says what to send.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from latencyprobe.domain.coverage import COVERAGE_GAPS, StageCoverage
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    joint_counters,
    largest_counters,
)
from latencyprobe.domain.report import NodeReport, report_on, report_on_node
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import Module, stages_of
from latencyprobe.domain.verdict import Bottleneck
from latencyprobe_operator.api.spec import ProbeSpec
from latencyprobe_operator.api.status_fields import (
    Condition,
    NodeContext,
    NodeState,
    NodeStatus,
    Phase,
    PodStatus,
    ProbeStatus,
    StatusTimes,
    Summary,
    TargetCounts,
)
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome
from latencyprobe_operator.probes.windows import headline

# The API server takes 1.5 MiB at most, and every reader of the list gets all of it.
MAX_BYTES = 240 * 1024
MAX_NODES = 50
# Of what was measured of nodes as a whole: so many nodes, and of each so many stages and counters;
# so many counters also of a pod's network namespace.
MAX_CONTEXTS = 8
MAX_CONTEXT_STAGES = 12
MAX_CONTEXT_COUNTERS = 24
_LONGEST_MESSAGE = 400

Document = dict[str, Any]

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
"""States in which nothing is heard of what the node may measure."""

_LACKING = ABSENT | {NodeState.FAILED}


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node that runs targets of the probe."""

    name: str
    state: NodeState
    message: str = ""
    gaps: tuple[StageCoverage, ...] = ()
    attached: int = 0
    """How many of the probe's targets are measured there."""
    cpu_percent: float | None = None
    """The run time of the node's programs, in percent of one core; None where it is unknown."""
    last_report: float | None = None
    """When it last reported on the probe, in seconds since the epoch, where no report is due."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod that is listed."""

    name: str
    node: str
    containers: tuple[str, ...]
    measurement: Measurement
    uncounted: frozenset[str] = frozenset()
    """Counters that its node can't count."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a probe cannot measure at all, as the condition Ready says it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """All that one status is made of. `pods` come worst first."""

    spec: ProbeSpec | None
    generation: int
    phase: Phase | None = None
    """SUSPENDED or COMPLETED where the probe is; None: see the rest."""
    problem: Problem | None = None
    matched_pods: int = 0
    containers: int = 0
    nodes: Sequence[NodeFacts] = ()
    pods: Sequence[PodFacts] = ()
    omitted_pods: int = 0
    merged: Measurement = NOTHING
    node_context: Mapping[str, NodeMeasurement] = field(default_factory=dict)
    """What was measured of nodes as a whole, by their names."""
    objectives: Sequence[Judgement] = ()
    start_time: str | None = None
    last_report_time: str | None = None
    previous: Mapping[str, Any] = field(default_factory=dict)
    """The status as it stands in the API server."""


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the API writes them."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    """The seconds since the epoch of an API timestamp; raises ValueError."""
    return datetime.datetime.fromisoformat(text).timestamp()


def build(facts: ProbeFacts, *, now: str) -> Document:
    """The status document of these facts."""
    if facts.phase is not None:
        return _at_rest(facts, now=now)
    ready = _ready(facts)
    degraded = any(node.state in _LACKING for node in facts.nodes)
    if degraded and facts.start_time:
        phase = Phase.DEGRADED
    else:
        phase = Phase.RUNNING if ready[0] == "True" else Phase.PENDING
    conditions = {"Ready": ready, "Covered": _covered(facts), "WithinOverhead": _overhead(facts)}
    if facts.spec and facts.spec.objectives:
        conditions["ObjectivesMet"] = _objectives(facts.objectives)
    uncovered = [node for node in facts.nodes if node.state is not NodeState.READY]
    listed = uncovered[:MAX_NODES]
    document = document_of(
        ProbeStatus(
            observed_generation=facts.generation,
            phase=phase,
            conditions=_conditions(conditions, facts, now),
            targets=_targets(facts),
            summary=_summary(facts, ready),
            pods=tuple(_pod(pod, facts, facts.spec) for pod in facts.pods) if facts.spec else (),
            omitted_pods=facts.omitted_pods,
            nodes=tuple(map(_node, listed)),
            omitted_nodes=len(uncovered) - len(listed),
            node_context=_node_context(facts),
            times=_times(facts),
        )
    )
    return _fit(document)


def _at_rest(facts: ProbeFacts, *, now: str) -> Document:
    """Suspended or completed: nothing is attached, and the last figures stay as they were."""
    phase = facts.phase or Phase.SUSPENDED
    reason, message = {
        Phase.SUSPENDED: ("Suspended", "spec.suspend is true: nothing is attached"),
        Phase.COMPLETED: ("Completed", "spec.duration is over: nothing is attached any more"),
    }[phase]
    idle = ("Unknown", reason, "nothing is attached")
    conditions = {"Ready": ("False", reason, message), "Covered": idle, "WithinOverhead": idle}
    if facts.spec and facts.spec.objectives:
        conditions["ObjectivesMet"] = idle
    kept = ("summary", "pods", "omittedPods", "nodeContext", "lastReportTime")
    resting = ProbeStatus(
        observed_generation=facts.generation,
        phase=phase,
        conditions=_conditions(conditions, facts, now),
        targets=_targets(facts),
    )
    document = document_of(resting)
    document["targets"] |= {**facts.previous.get("targets", {}), "readyNodes": 0}
    document |= {key: facts.previous[key] for key in kept if key in facts.previous}
    return document | document_of(_times(facts))


def _times(facts: ProbeFacts) -> StatusTimes:
    return StatusTimes(facts.start_time or None, facts.last_report_time or None)


def _targets(facts: ProbeFacts) -> TargetCounts:
    return TargetCounts(
        pods=facts.matched_pods,
        containers=facts.containers,
        nodes=len(facts.nodes),
        ready_nodes=sum(node.state in MEASURING for node in facts.nodes),
    )


# --------------------------------------------------------------------------- conditions

Finding = tuple[str, str, str]
"""(status, reason, message)"""


def _ready(facts: ProbeFacts) -> Finding:
    if facts.problem:
        return "False", facts.problem.reason, facts.problem.message
    if not facts.matched_pods:
        return (
            "False",
            "NoMatchingPods",
            "no pod of this namespace matches the selector; measuring starts when one appears",
        )
    if not facts.nodes:
        return "False", "NoRunningContainers", "the matching pods run no container to measure yet"
    if any(node.attached for node in facts.nodes):
        return "True", "Measuring", f"{_share_of_nodes(facts)} measure every target"
    worst = max(facts.nodes, key=lambda node: (node.state in ABSENT, node.name))
    return "False", _READY_REASONS.get(worst.state, "Attaching"), _about(worst)


_READY_REASONS = {
    NodeState.NO_AGENT: "NoAgent",
    NodeState.UNREACHABLE: "AgentUnreachable",
    NodeState.VERSION_SKEW: "VersionSkew",
    NodeState.REJECTED: "AgentRejects",
    NodeState.STALE: "AgentSilent",
    NodeState.FAILED: "TargetsFailed",
}


def _covered(facts: ProbeFacts) -> Finding:
    if not facts.nodes:
        return "Unknown", "NoTargets", "there is nothing to cover"
    uncovered = [node for node in facts.nodes if node.state is not NodeState.READY]
    if not uncovered:
        return "True", "FullyCovered", "every stage is measured for every target"
    lacking = [node for node in uncovered if node.state not in MEASURING]
    first = (lacking or uncovered)[0]
    more = f" (and {len(uncovered) - 1} more nodes)" if len(uncovered) > 1 else ""
    if lacking:
        return "False", "NodesNotCovered", _about(first) + more
    names = ", ".join(gap.name for gap in first.gaps)
    return "False", "StagesNotCovered", f"node {first.name}: not fully measured: {names}{more}"


def _overhead(facts: ProbeFacts) -> Finding:
    known = [(node.cpu_percent, node.name) for node in facts.nodes if node.cpu_percent is not None]
    if not known or not facts.spec:
        return "Unknown", "NotMeasured", "no agent has reported the run time of its programs"
    budget = facts.spec.max_cpu_percent
    cpu_percent, name = max(known)
    figures = f"{cpu_percent:.1f} % of one core on node {name}"
    if not budget:
        return "True", "NoBudget", f"spec.overhead sets no limit; at most {figures}"
    # Two digits of a fluctuating figure would change the message with each report.
    if cpu_percent <= budget:
        return "True", "WithinBudget", f"at most {budget:g} % of one core on every node"
    return "False", "OverBudget", f"{figures}, {budget:g} % are allowed"


def _objectives(judgements: Sequence[Judgement]) -> Finding:
    def messages(outcome: ObjectiveOutcome) -> str:
        return "; ".join(each.message for each in judgements if each.outcome is outcome)

    if missed := messages(ObjectiveOutcome.MISSED):
        return "False", "ObjectiveMissed", missed
    if unknown := messages(ObjectiveOutcome.UNKNOWN):
        return "Unknown", "InsufficientData", unknown
    return "True", "AllMet", messages(ObjectiveOutcome.MET)


def _conditions(
    findings: Mapping[str, Finding], facts: ProbeFacts, now: str
) -> tuple[Condition, ...]:
    """As metav1.Condition: lastTransitionTime moves only where the status changes."""
    before = {each.get("type"): each for each in facts.previous.get("conditions") or ()}

    def condition(name: str, status: str, reason: str, message: str) -> Condition:
        previous = before.get(name, {})
        unchanged = previous.get("status") == status and previous.get("lastTransitionTime")
        return Condition(
            type=name,
            status=status,
            reason=reason,
            message=_shorten(message),
            last_transition_time=previous["lastTransitionTime"] if unchanged else now,
            observed_generation=facts.generation,
        )

    return tuple(condition(name, *finding) for name, finding in findings.items())


def _share_of_nodes(facts: ProbeFacts) -> str:
    measuring = sum(node.state in MEASURING for node in facts.nodes)
    return f"{measuring} of {len(facts.nodes)} nodes"


def _about(node: NodeFacts) -> str:
    return f"node {node.name}: {node.message or node.state}"


# ------------------------------------------------------------------------------ figures


def _summary(facts: ProbeFacts, ready: Finding) -> Summary:
    if not facts.spec or not facts.matched_pods:
        return Summary(message=_shorten(ready[2]))
    report = report_on(facts.merged, facts.spec.modules, _counters_of_all(facts.node_context))
    verdict = report.verdict
    received, sent = (facts.merged.stage(name).histogram for name in ("rx.total", "tx.total"))
    whole = headline(received, sent)
    insufficient = verdict.bottleneck is Bottleneck.INSUFFICIENT_DATA
    use_ready = insufficient and ready[0] != "True"
    return Summary(
        bottleneck=verdict.bottleneck,
        p50=format_ns(whole.percentile(50)) if whole.count else None,
        p99=format_ns(whole.percentile(99)) if whole.count else None,
        message=_shorten(ready[2] if use_ready else "; ".join(verdict.evidence)),
    )


def _counters_of_all(nodes: Mapping[str, NodeMeasurement]) -> NodeMeasurement:
    counters: dict[str, int] = {}
    for node in nodes.values():
        counters = joint_counters(counters, node.counters)
    return NodeMeasurement({}, counters)


def _pod(pod: PodFacts, facts: ProbeFacts, spec: ProbeSpec) -> PodStatus:
    node = facts.node_context.get(pod.node, NOTHING_OF_THE_NODE)
    report = report_on(pod.measurement, spec.modules, node, uncounted=pod.uncounted)
    return PodStatus(
        name=pod.name,
        node=pod.node,
        containers=pod.containers,
        verdict=report.verdict,
        stages=report.stages,
        counters=report.counters,
        netns_counters=_bounded(report.netns_counters),
    )


def _node_context(facts: ProbeFacts) -> tuple[NodeContext, ...]:
    """The nodes with something to tell, the most telling first: drops, then the module irq."""
    if not facts.spec:
        return ()
    reports = {
        name: report_on_node(measurement, facts.spec.modules)
        for name, measurement in facts.node_context.items()
    }
    telling = [name for name, report in reports.items() if report]
    telling.sort(key=lambda name: (*_rank(reports[name]), name))
    return tuple(_context(name, reports[name]) for name in telling[:MAX_CONTEXTS])


def _rank(report: NodeReport) -> tuple[int, int]:
    """How often something went wrong (no counter of a node counts anything else), then slowness."""
    slowest_ns = max((stage.p99_ns for stage in report.stages), default=0)
    return -sum(report.counters.values()), -slowest_ns


def _bounded(counters: Mapping[str, int]) -> dict[str, int]:
    """The largest of the counters that have no table to bound them, by name."""
    return dict(sorted(largest_counters(counters, MAX_CONTEXT_COUNTERS).items()))


def _context(name: str, report: NodeReport) -> NodeContext:
    costliest = sorted(report.stages, key=lambda s: s.mean_ns * s.count, reverse=True)
    shown = set(costliest[:MAX_CONTEXT_STAGES])
    return NodeContext(
        node=name,
        counters=_bounded(report.counters),
        stages=tuple(stage for stage in report.stages if stage in shown),
    )


def _node(node: NodeFacts) -> NodeStatus:
    return NodeStatus(
        name=node.name,
        state=node.state,
        message=_shorten(node.message),
        last_report_time=None if node.last_report is None else timestamp(node.last_report),
        stages=tuple(
            replace(gap, hook=_shorten(gap.hook), reason=_shorten(gap.reason)) for gap in node.gaps
        ),
    )


def gaps_in(
    coverage: Mapping[str, StageCoverage], modules: Sequence[Module]
) -> tuple[StageCoverage, ...]:
    """The stages of these modules that a node does not, or not fully, measure.

    An idle stage is none of them: the state that is being applied switches it on.
    """
    return tuple(
        coverage[stage.name]
        for stage in stages_of(modules)
        if stage.name in coverage and coverage[stage.name].state in COVERAGE_GAPS
    )


# ----------------------------------------------------------------------------- size, diff


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def size_bytes(document: Mapping[str, Any]) -> int:
    """How long the document is as the API server's JSON."""
    return len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())


def _fit(document: Document) -> Document:
    """The document with as many pods, then nodes, left out as it takes to stay in MAX_BYTES."""
    for rows, omitted in (("pods", "omittedPods"), ("nodes", "omittedNodes")):
        while len(document[rows]) > 1 and size_bytes(document) > MAX_BYTES:
            keep = len(document[rows]) * 3 // 4
            document[omitted] += len(document[rows]) - keep
            document[rows] = document[rows][:keep]
    return document


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """The JSON merge patch (RFC 7386) that makes `after` out of `before`; empty if they are equal.

    Values that are None have no place in `after`: a merge patch cannot express them.
    """
    patch: Document = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch


_VOLATILE = ("lastReportTime",)


def differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether there is anything to tell beyond that reports still come in."""
    return bool(merge_patch(_lasting(before), _lasting(after)))


def _lasting(document: Mapping[str, Any]) -> Document:
    return {key: value for key, value in document.items() if key not in _VOLATILE}


def turning_points(document: Mapping[str, Any]) -> Document:
    """What a person waits for: when it changes, the status is written without delay."""
    return {
        "observedGeneration": document.get("observedGeneration"),
        "phase": document.get("phase"),
        "ready": [
            (each.get("status"), each.get("reason"))
            for each in document.get("conditions") or ()
            if each.get("type") == "Ready"
        ],
    }
