"""The status of a probe: a pure function of its facts at one moment.

Bounded for every size of a cluster (document.MAX_BYTES), and equal for equal facts, so that a write
can be left out if nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    NodeMeasurement,
    count_failures,
    joint_counters,
    largest_counters,
)
from latencyprobe.domain.report import NodeReport, report_on, report_on_node
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import PENDING
from latencyprobe_operator.api.conditions import ConditionType, ReadyReason
from latencyprobe_operator.api.status_fields import (
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
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.probes.conclusion import conclude
from latencyprobe_operator.probes.conditions import (
    Finding,
    conditions_of,
    findings_of,
    idle_findings,
)
from latencyprobe_operator.probes.document import HEAVY, Document, shorten
from latencyprobe_operator.probes.facts import (
    LACKING,
    MEASURING,
    NodeFacts,
    PodFacts,
    ProbeFacts,
)
from latencyprobe_operator.probes.fitting import fit

MAX_NODES = 50
# Of a pod.
MAX_PEERS = 2
MAX_CGROUPS = 4
# Of the measurements of nodes as a whole: so many nodes, and of each so many stages and counters;
# so many counters also of a pod's network namespace.
MAX_CONTEXTS = 8
MAX_CONTEXT_STAGES = 12
MAX_CONTEXT_COUNTERS = 24
# The parts that stay when the measurement ends.
FIGURES = (
    "targets",
    "summary",
    "pods",
    "omittedPods",
    "omittedForSize",
    "nodeContext",
    "lastReportTime",
)


def build(facts: ProbeFacts, *, now: str) -> Document:
    """Build the status document of these facts."""
    if facts.phase is not None:
        return _idle(facts, facts.phase, now=now)
    return fit(_document(facts, now=now))


def build_without_pods(facts: ProbeFacts, *, now: str) -> Document:
    """Build a part of the status document, without pods and figures of nodes: see `HEAVY`."""
    document = _document(facts, now=now, has_pods=False)
    return {key: value for key, value in document.items() if key not in HEAVY}


def pod_rows(facts: ProbeFacts) -> Document:
    """Build the part of a document that `build_without_pods` leaves out."""
    omitted = _omitted_peers(facts.pods)
    return {
        "pods": [document_of(_pod(each)) for each in facts.pods],
        "omittedPods": facts.omitted_pods,
        **({"omittedForSize": omitted} if omitted else {}),
    }


def _document(facts: ProbeFacts, *, now: str, has_pods: bool = True) -> Document:
    findings = findings_of(facts)
    ready = findings[ConditionType.READY]
    phase = _phase(facts, ready)
    uncovered = [node for node in facts.nodes if node.state is not NodeState.READY]
    listed = uncovered[:MAX_NODES]
    return document_of(
        ProbeStatus(
            observed_generation=facts.generation,
            phase=phase,
            conditions=conditions_of(findings, facts, now),
            targets=_targets(facts),
            summary=_summary(facts, ready),
            pods=tuple(map(_pod, facts.pods)) if facts.spec and has_pods else (),
            omitted_pods=facts.omitted_pods,
            omitted_for_size=_omitted_peers(facts.pods) if facts.spec and has_pods else {},
            nodes=tuple(map(_node, listed)),
            omitted_nodes=len(uncovered) - len(listed),
            node_context=_node_context(facts),
            times=_times(facts),
        )
    )


def outline(facts: ProbeFacts, *, now: str) -> Document:
    """Build the parts that people wait for alone; see `turning_points`."""
    findings = findings_of(facts) if facts.phase is None else idle_findings(facts, facts.phase)
    phase = facts.phase or _phase(facts, findings[ConditionType.READY])
    return {
        "observedGeneration": facts.generation,
        "phase": str(phase),
        "conditions": [document_of(each) for each in conditions_of(findings, facts, now)],
    }


def _phase(facts: ProbeFacts, ready: Finding) -> Phase:
    degraded = any(node.state in LACKING for node in facts.nodes)
    if degraded and facts.start_time:
        return Phase.DEGRADED
    return Phase.RUNNING if ready.reason is ReadyReason.MEASURING else Phase.PENDING


def _idle(facts: ProbeFacts, phase: Phase, *, now: str) -> Document:
    """Build the status of a suspended or completed probe: the last figures stay as they were."""
    status = ProbeStatus(
        observed_generation=facts.generation,
        phase=phase,
        conditions=conditions_of(idle_findings(facts, phase), facts, now),
        targets=_targets(facts),
    )
    document = document_of(status)
    document["targets"] |= {**facts.previous.get("targets", {}), "readyNodes": 0}
    kept = {key: facts.previous[key] for key in FIGURES if key in facts.previous}
    if not facts.spec or not facts.spec.node_figures:
        kept.pop("nodeContext", None)
    document |= {**kept, "targets": document["targets"]}
    return document | document_of(_times(facts))


def _times(facts: ProbeFacts) -> StatusTimes:
    return StatusTimes(
        start_time=facts.start_time or None,
        measured_seconds=facts.measured_s,
        last_report_time=facts.last_report_time or None,
    )


def _targets(facts: ProbeFacts) -> TargetCounts:
    return TargetCounts(
        pods=facts.matched_pods,
        containers=facts.containers,
        nodes=len(facts.nodes),
        ready_nodes=sum(node.state in MEASURING for node in facts.nodes),
    )


def _summary(facts: ProbeFacts, ready: Finding) -> Summary:
    if not facts.spec or not (facts.matched_pods or facts.pods):
        return Summary(message=shorten(ready.message))
    node = _counters_of_all(facts.node_context) if facts.spec.node_figures else None
    # What is pending is in no sum: it is not known, rather than nothing.
    report = report_on(
        facts.merged,
        facts.spec.modules,
        node,
        uncounted=(PENDING,),
        objectives=facts.spec.bounds,
    )
    conclusion = conclude(report.verdict, facts)
    received, sent = (facts.merged.stage(name).histogram for name in ("rx.total", "tx.total"))
    whole = _headline(received, sent)
    p50_ns, p99_ns = whole.percentile(50), whole.percentile(99)
    insufficient = conclusion.bottleneck is Bottleneck.INSUFFICIENT_DATA
    use_ready = insufficient and ready.reason is not ReadyReason.MEASURING
    return Summary(
        bottleneck=conclusion.bottleneck,
        p50=format_ns(p50_ns) if whole.count else None,
        p99=format_ns(p99_ns) if whole.count else None,
        p50_ns=p50_ns if whole.count else None,
        p99_ns=p99_ns if whole.count else None,
        stage=conclusion.stage,
        unobserved_seconds=facts.unobserved_s or None,
        message=shorten(ready.message if use_ready else "; ".join(conclusion.evidence)),
    )


def _counters_of_all(nodes: Mapping[str, NodeMeasurement]) -> NodeMeasurement:
    counters: dict[str, int] = {}
    for node in nodes.values():
        counters = joint_counters(counters, node.counters)
    return NodeMeasurement({}, counters)


def _headline(received: Histogram, sent: Histogram) -> Histogram:
    """Return the total that stands for all: rx.total, or tx.total if nothing was received."""
    return received if received.count else sent


def _pod(pod: PodFacts) -> PodStatus:
    report = pod.report
    return PodStatus(
        name=pod.name,
        node=pod.node,
        containers=pod.containers,
        ended=pod.ended,
        verdict=report.verdict,
        stages=report.stages,
        counters=report.counters,
        netns_counters=_bounded(report.netns_counters),
        pending=report.pending,
        peers=report.peers[:MAX_PEERS],
        cgroups=tuple(each for each in report.cgroups if each.name)[:MAX_CGROUPS],
    )


def _omitted_peers(pods: Iterable[PodFacts]) -> Mapping[str, int]:
    """Count the peers that the rows of these pods lack."""
    number = sum(max(len(pod.report.peers) - MAX_PEERS, 0) for pod in pods)
    return {"peers": number} if number else {}


def _node_context(facts: ProbeFacts) -> tuple[NodeContext, ...]:
    """Return the nodes with something to report, the worst first: by drops, then by stages."""
    if not facts.spec or not facts.spec.node_figures:
        return ()
    reports = {
        name: report_on_node(measurement, facts.spec.modules)
        for name, measurement in facts.node_context.items()
    }
    reporting = [name for name, report in reports.items() if report]
    reporting.sort(key=lambda name: (*_rank(reports[name]), name))
    return tuple(_context(name, reports[name]) for name in reporting[:MAX_CONTEXTS])


def _rank(report: NodeReport) -> tuple[int, int]:
    """Return the sort key: the count of failures, then slowness."""
    slowest_ns = max((stage.p99_ns for stage in report.stages), default=0)
    return -count_failures(report.counters), -slowest_ns


def _bounded(counters: Mapping[str, int]) -> dict[str, int]:
    """Return the largest counters, by name: their names are open, so their number is limited."""
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
        message=shorten(node.message),
        last_report_time=None if node.last_report is None else timestamp(node.last_report),
        stages=tuple(
            replace(gap, hook=shorten(gap.hook), reason=shorten(gap.reason)) for gap in node.gaps
        ),
    )
