"""Gathering: the facts of one moment, from a probe's pods, their agents and the windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import PlacedPod
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import AgentView
from latencyprobe_operator.probes.facts import NodeFacts, PodFacts, ProbeFacts
from latencyprobe_operator.probes.intake import ReportIntake
from latencyprobe_operator.probes.nodes import node_facts, not_covered
from latencyprobe_operator.probes.objectives import ObjectivesWatch
from latencyprobe_operator.probes.selected_pods import SelectedPods
from latencyprobe_operator.probes.staleness import patience_s
from latencyprobe_operator.probes.status import MAX_CONTEXTS
from latencyprobe_operator.probes.windows import TOTALS, headline


class FactsGatherer:
    """Adds to a probe's facts those of its nodes, pods and figures."""

    def __init__(
        self,
        key: ProbeKey,
        *,
        pods: SelectedPods,
        intake: ReportIntake,
        agent: Callable[[str], AgentView],
    ) -> None:
        """Gather nothing yet. `agent` returns the view of the agent of a node."""
        self._key = key
        self._pods = pods
        self._intake = intake
        self._agent = agent
        self._objectives = ObjectivesWatch()

    def with_nodes(self, facts: ProbeFacts, spec: ProbeSpec, *, at: float) -> ProbeFacts:
        """Add the nodes that run pods of the probe, and forget all others."""
        by_node: dict[str, list[ContainerTarget]] = {}
        for placed in self._pods.placed.values():
            by_node.setdefault(placed.pod.node, []).extend(placed.targets)
        nodes = [
            self._node_facts(node, targets, spec, at) for node, targets in sorted(by_node.items())
        ]
        self._intake.windows.keep_nodes(by_node)
        self._intake.report_times.keep(by_node)
        return dataclasses.replace(
            facts,
            matched_pods=self._pods.matched,
            containers=sum(map(len, by_node.values())),
            nodes=nodes,
        )

    def with_figures(self, facts: ProbeFacts, spec: ProbeSpec, *, at: float) -> ProbeFacts:
        """Add the windows' figures, of as many pods as the status lists."""
        windows, placed = self._intake.windows, self._pods.placed
        ordered = windows.worst_first(placed, at=at)
        listed = [self._pod_facts(placed[uid], at) for uid in ordered[: spec.max_pods]]
        merged = windows.merged(at=at)
        return dataclasses.replace(
            facts,
            pods=sorted(listed, key=_p99_ns, reverse=True),
            omitted_pods=len(ordered) - len(listed),
            merged=merged,
            node_context=windows.of_nodes(most=MAX_CONTEXTS, at=at),
            objectives=self._objectives.judge(spec.objectives, merged, at=at),
        )

    def _node_facts(
        self, node: str, targets: list[ContainerTarget], spec: ProbeSpec, at: float
    ) -> NodeFacts:
        agent = self._agent(node)
        is_due = agent.state is NodeState.READY
        return node_facts(
            node,
            agent,
            self._key.uid,
            targets,
            spec.measured_modules,
            staleness=self._intake.report_times.staleness(node, is_due=is_due, at=at),
            patience_s=patience_s(spec.interval_s),
        )

    def _pod_facts(self, placed: PlacedPod, at: float) -> PodFacts:
        return PodFacts(
            name=placed.pod.name,
            node=placed.pod.node,
            containers=tuple(target.container.name for target in placed.targets),
            measurement=self._intake.windows.of_pod(placed.pod.uid, at=at),
            uncounted=not_covered(self._agent(placed.pod.node)),
        )


def _p99_ns(pod: PodFacts) -> int:
    received, sent = (pod.measurement.stage(name).histogram for name in TOTALS)
    return headline(received, sent).percentile(99)
