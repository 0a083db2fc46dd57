"""The facts about a probe's nodes: pure, from the views of their agents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from latencyprobe.domain.coverage import COVERAGE_GAPS, CoverageState, StageCoverage
from latencyprobe.domain.stages import PENDING, Module, counters_of, stages_of
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import AgentView, TargetStatus
from latencyprobe_operator.probes.facts import ABSENT, MEASURING, NodeFacts
from latencyprobe_operator.probes.staleness import NO_STALENESS, Staleness, age_text

# A tuple compares by identity; a set would hash.
_GAPS = tuple(COVERAGE_GAPS)


def node_facts(
    node: str,
    agent: AgentView,
    probe_uid: str,
    targets: Sequence[ContainerTarget],
    modules: Sequence[Module],
    *,
    staleness: Staleness = NO_STALENESS,
    patience_s: float = math.inf,
) -> NodeFacts:
    """Return how far this node's agent measures these targets of a probe, and if it reports.

    An agent that has not reported for more than `patience_s` is stale.
    """
    statuses = agent.statuses_of(probe_uid, targets)
    # A count in a list compares by identity. Hashes of enums would take most of this function's
    # time, and it runs for each probe and node of a cluster.
    attached = [status.state for status in statuses].count(TargetState.ATTACHED)
    state, message = agent.state, agent.message
    gaps: tuple[StageCoverage, ...] = ()
    if state is NodeState.READY:
        message = ""
        if attached < len(targets) or not targets:
            state, message = _of_targets(list(zip(targets, statuses, strict=True)))
        gaps = gaps_in(agent.coverage, modules)
        if state is NodeState.READY and gaps:
            state = NodeState.PARTIAL
        if state in MEASURING and any(status.is_partial for status in statuses):
            state, message = NodeState.PARTIAL, _partial(list(zip(targets, statuses, strict=True)))
    if state in MEASURING and staleness.due_s > patience_s:
        state, message = NodeState.STALE, "its agent is connected, but does not report"
    last_report = None
    if state in ABSENT or state is NodeState.CONNECTING:
        attached = 0  # it may still measure them, but no report arrives
        message, last_report = _with_age(message, staleness), staleness.last_report
    stopped = tuple(module for module in agent.stopped_modules if module in modules)
    return NodeFacts(
        node,
        state,
        message,
        gaps,
        attached,
        cpu_percent=agent.cpu_percent,
        stopped_modules=stopped,
        last_report=last_report,
    )


def _with_age(message: str, staleness: Staleness) -> str:
    if staleness.last_report is None:
        return message
    age = f"last report {age_text(staleness.age_s)} ago"
    return f"{message}; {age}" if message else age


def not_covered(agent: AgentView) -> frozenset[str]:
    """Return the names of the stages and counters that this node cannot measure."""
    return frozenset(
        stage.name for stage in agent.coverage.values() if stage.state is CoverageState.UNAVAILABLE
    )


def gaps_in(
    coverage: Mapping[str, StageCoverage], modules: Sequence[Module]
) -> tuple[StageCoverage, ...]:
    """Return the stages of these modules that a node does not, or not fully, measure.

    An idle stage is no gap: the state that is being applied switches it on. Counters are none: most
    kernels lack some, and targets have figures without them. But without `pending` nothing that
    hangs is seen.
    """
    stages = stages_of(modules)
    known = [coverage[stage.name] for stage in stages if stage.name in coverage]
    gaps = tuple(each for each in known if each.state in _GAPS)
    if known and len(known) < len(stages):
        gaps += tuple(_of_unknown_modules(coverage, modules))
    pending = coverage.get(PENDING)
    if pending is None or pending.state is not CoverageState.UNAVAILABLE:
        return gaps
    return (*gaps, pending) if PENDING in counters_of(modules) else gaps


def _of_unknown_modules(
    coverage: Mapping[str, StageCoverage], modules: Sequence[Module]
) -> Iterator[StageCoverage]:
    """Yield the stages of modules of which an older agent knows none: it leaves them out."""
    for module in modules:
        stages = stages_of((module,))
        if not any(stage.name in coverage for stage in stages):
            reason = f"this agent does not know module {module}; upgrade it"
            for stage in stages:
                yield StageCoverage(stage.name, CoverageState.UNAVAILABLE, reason=reason)


def _of_targets(
    statuses: Sequence[tuple[ContainerTarget, TargetStatus]],
) -> tuple[NodeState, str]:
    """Return the state of an agent that has applied everything.

    A target that is gone does not count: its pod leaves the desired state soon.
    """
    counts = Counter(status.state for _, status in statuses)
    if counts[TargetState.FAILED]:
        return NodeState.FAILED, _describe(statuses, TargetState.FAILED, "cannot be measured")
    if counts[TargetState.PENDING]:
        return NodeState.ATTACHING, _describe(statuses, TargetState.PENDING, "not found yet")
    if not counts[TargetState.ATTACHED]:
        return NodeState.ATTACHING, _describe(statuses, TargetState.GONE, "gone")
    return NodeState.READY, ""


def _partial(statuses: Sequence[tuple[ContainerTarget, TargetStatus]]) -> str:
    return _first_of([each for each in statuses if each[1].is_partial], "measured in part")


def _describe(
    statuses: Sequence[tuple[ContainerTarget, TargetStatus]], state: TargetState, otherwise: str
) -> str:
    return _first_of([each for each in statuses if each[1].state is state], otherwise)


def _first_of(concerned: Sequence[tuple[ContainerTarget, TargetStatus]], otherwise: str) -> str:
    target, status = concerned[0]
    more = f" (and {len(concerned) - 1} more)" if len(concerned) > 1 else ""
    return f"container {target.name}: {status.message or otherwise}{more}"
