"""What one node's agent means for one probe: pure, from the agent's own words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.api.status import ABSENT, MEASURING, NodeFacts, gaps_in
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import AgentView, TargetStatus
from latencyprobe_operator.probes.staleness import NO_SILENCE, Silence, age_text

_UNKNOWN_TARGET = TargetStatus(TargetState.PENDING, "")


def node_facts(
    node: str,
    agent: AgentView,
    probe_uid: str,
    targets: Sequence[ContainerTarget],
    modules: Sequence[Module],
    *,
    silence: Silence = NO_SILENCE,
    patience_s: float = math.inf,
) -> NodeFacts:
    """How far this node's agent measures these targets of a probe, and whether it is heard of.

    A silence of more than `patience_s` makes it stale.
    """
    known = agent.targets.get(probe_uid, {})
    words = [(target, known.get(target.id, _UNKNOWN_TARGET)) for target in targets]
    counts = Counter(status.state for _, status in words)
    attached = counts[TargetState.ATTACHED]
    state, message = agent.state, agent.message
    gaps: tuple[StageCoverage, ...] = ()
    if state is NodeState.READY:
        state, message = _of_targets(words, counts)
        gaps = gaps_in(agent.coverage, modules)
        if state is NodeState.READY and gaps:
            state = NodeState.PARTIAL
    if state in MEASURING and silence.due_s > patience_s:
        state, message = NodeState.STALE, "its agent is connected, and does not report"
    last_report = None
    if state in ABSENT or state is NodeState.CONNECTING:
        attached = 0  # it may still measure them, but nobody hears of it
        message, last_report = _with_age(message, silence), silence.last_report
    return NodeFacts(node, state, message, gaps, attached, agent.cpu_percent, last_report)


def _with_age(message: str, silence: Silence) -> str:
    if silence.last_report is None:
        return message
    age = f"last report {age_text(silence.age_s)} ago"
    return f"{message}; {age}" if message else age


def not_covered(agent: AgentView) -> frozenset[str]:
    """The stages and counters that this node can't tell of."""
    return frozenset(
        stage.name for stage in agent.coverage.values() if stage.state is CoverageState.UNAVAILABLE
    )


def _of_targets(
    words: Sequence[tuple[ContainerTarget, TargetStatus]], counts: Mapping[TargetState, int]
) -> tuple[NodeState, str]:
    """The state of an agent that has applied everything. A target that is gone soon leaves."""
    if counts[TargetState.FAILED]:
        return NodeState.FAILED, _tell(words, TargetState.FAILED, "cannot be measured")
    if counts[TargetState.PENDING]:
        return NodeState.ATTACHING, _tell(words, TargetState.PENDING, "not found yet")
    if not counts[TargetState.ATTACHED]:
        return NodeState.ATTACHING, _tell(words, TargetState.GONE, "gone")
    return NodeState.READY, ""


def _tell(
    words: Sequence[tuple[ContainerTarget, TargetStatus]], state: TargetState, otherwise: str
) -> str:
    concerned = [(target, status) for target, status in words if status.state is state]
    target, status = concerned[0]
    more = f" (and {len(concerned) - 1} more)" if len(concerned) > 1 else ""
    return f"container {target.container.name}: {status.message or otherwise}{more}"
