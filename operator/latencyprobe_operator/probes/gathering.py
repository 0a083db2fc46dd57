"""Gathering: the facts of one moment, from a probe's pods, their agents and the summaries."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType

from latencyprobe.domain.measurement import Measurement
from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import AgentView
from latencyprobe_operator.probes.facts import (
    ABSENT,
    MEASURING,
    UNSETTLED,
    NodeFacts,
    PodFacts,
    ProbeFacts,
)
from latencyprobe_operator.probes.intake import ReportIntake
from latencyprobe_operator.probes.left_nodes import LeftNodes
from latencyprobe_operator.probes.naming import Naming
from latencyprobe_operator.probes.nodes import node_facts
from latencyprobe_operator.probes.objectives import ObjectivesWatch
from latencyprobe_operator.probes.selected_pods import SelectedPods
from latencyprobe_operator.probes.skew import skew_of_names
from latencyprobe_operator.probes.staleness import patience_s
from latencyprobe_operator.probes.status import MAX_CONTEXTS
from latencyprobe_operator.probes.summaries import NodePod
from latencyprobe_operator.probes.sums import RunningSum
from latencyprobe_operator.probes.worst_pods import WorstPods

# The wait for pods in full, before a status.
_LONGEST_FETCH_S = 1.0
_FETCH_INTERVALS = 0.25


class FactsGatherer:
    """Adds to a probe's facts those of its nodes, pods and figures."""

    def __init__(
        self,
        key: ProbeKey,
        *,
        pods: SelectedPods,
        intake: ReportIntake,
        worst: WorstPods,
        agent: Callable[[str], AgentView],
        naming: Naming,
        exceeded: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Gather nothing yet. `agent` returns the view of the agent of a node.

        `exceeded`: the objectives that an earlier operator has found exceeded, as `exceeded_in`.
        """
        self._key = key
        self._pods = pods
        self._intake = intake
        self._worst = worst
        self._agent = agent
        self._naming = naming
        self._objectives = ObjectivesWatch(exceeded)
        self._left = LeftNodes()

    def with_nodes(self, facts: ProbeFacts, spec: ProbeSpec, *, at: float) -> ProbeFacts:
        """Add the nodes that run containers of the probe, and forget those without a pod."""
        by_node: dict[str, list[ContainerTarget]] = {}
        for placed in self._pods.placed.values():
            if placed.targets:
                by_node.setdefault(placed.pod.node, []).extend(placed.targets)
        placed_on = {placed.pod.node for placed in self._pods.placed.values()}
        self._forget_all_but(placed_on, spec, at)
        nodes = [
            self._node_facts(node, targets, spec, at) for node, targets in sorted(by_node.items())
        ]
        self._intake.report_times.keep(placed_on)
        return dataclasses.replace(
            facts,
            matched_pods=self._pods.matched,
            containers=sum(map(len, by_node.values())),
            nodes=nodes,
        )

    def _forget_all_but(self, nodes: Collection[str], spec: ProbeSpec, at: float) -> None:
        summaries, window_s, interval_s = self._intake.summaries, spec.window_s, spec.interval_s
        over = self._left.over(
            self._pods.left, summaries, at=at, window_s=window_s, interval_s=interval_s
        )
        self._pods.release(over)
        summaries.forget(nodes, at=at, window_s=window_s, interval_s=interval_s)

    def all_reported(self) -> bool:
        """Decide whether each node that has figures to report has done so."""
        return self._intake.reported and all(
            self._agent(node).state in ABSENT for node in self._nodes_without_report()
        )

    def awaits_agents(self) -> bool:
        """Decide whether a node without a report has an agent that is yet to attach."""
        return any(self._agent(node).state in UNSETTLED for node in self._nodes_without_report())

    def _nodes_without_report(self) -> Iterator[str]:
        nodes = {placed.pod.node for placed in self._pods.placed.values() if placed.targets}
        has_reported = self._intake.report_times.has
        return (node for node in nodes | self._pods.left if not has_reported(node))

    async def fetch_worst(self, spec: ProbeSpec, *, at: float) -> None:
        """Choose the pods to list, and have their agents report the missing ones in full."""
        nodes = {placed.pod.node for placed in self._pods.placed.values()}
        self._forget_all_but(nodes, spec, at)
        await self._worst.choose(self._intake.summaries, nodes | self._pods.left)
        timeout_s = min(_LONGEST_FETCH_S, spec.interval_s * _FETCH_INTERVALS)
        await self._worst.fetch(self._intake.summaries, self._intake.arrived, timeout_s=timeout_s)

    async def with_figures(self, facts: ProbeFacts, spec: ProbeSpec, *, at: float) -> ProbeFacts:
        """Add the figures over the window, with as many pods as the status lists."""
        summaries = self._intake.summaries
        merged = await self._merged()
        listed = heapq.nlargest(spec.max_pods, summaries.in_full(), key=lambda each: each.pod.place)
        return dataclasses.replace(
            facts,
            pods=[self._pod_facts(each) for each in listed],
            omitted_pods=max(summaries.measured - len(listed), 0),
            merged=merged,
            accused=summaries.accused(),
            node_context=summaries.of_nodes(most=MAX_CONTEXTS),
            objectives=self._objectives.judge(spec.objectives, merged, at=at),
            unobserved_s=max(
                (summaries.unobserved(node.name, spec.window_s).seconds for node in facts.nodes),
                default=0,
            ),
        )

    async def _merged(self) -> Measurement:
        """Return the sum over all nodes; other tasks go on between its steps."""
        total = RunningSum()
        for _ in self._intake.summaries.adding_up(total):
            await asyncio.sleep(0)
        return total.value()

    def _node_facts(
        self, node: str, targets: list[ContainerTarget], spec: ProbeSpec, at: float
    ) -> NodeFacts:
        agent = self._agent(node)
        is_due = agent.state is NodeState.READY
        facts = node_facts(
            node,
            agent,
            self._key.uid,
            targets,
            spec.measured_modules,
            staleness=self._intake.report_times.staleness(node, is_due=is_due, at=at),
            patience_s=patience_s(spec.interval_s),
        )
        lacking = self._lacking(node, agent, spec)
        if facts.state not in MEASURING or not lacking:
            return facts
        message = "; ".join(filter(None, (facts.message, lacking)))
        return dataclasses.replace(facts, state=NodeState.PARTIAL, message=message)

    def _lacking(self, node: str, agent: AgentView, spec: ProbeSpec) -> str:
        """Describe the part of a node's figures that is missing; empty if it is none."""
        summaries = self._intake.summaries
        name = f"agent {agent.version or 'of unknown version'}"
        if not summaries.keeps_window(node):
            return (
                f"{name} keeps no window: its figures cover one interval of "
                f"{spec.interval_s:g} s; upgrade it"
            )
        unknown = {*summaries.unknown_of(node), *agent.unknown}
        skews = filter(None, (summaries.skew_of(node), skew_of_names(unknown)))
        lacking = [f"{name} {skew}" for skew in skews]
        if unobserved := summaries.unobserved(node, spec.window_s):
            lacking.append(str(unobserved))
        return "; ".join(lacking)

    def _pod_facts(self, listed: NodePod) -> PodFacts:
        node, pod = listed
        report = self._naming.named(pod.report, node)
        placed = self._pods.placed.get(pod.pod_uid)
        if placed is None:
            return PodFacts(pod.name, node, pod.containers, report, ended=True)
        running = tuple(target.name for target in placed.targets)
        return PodFacts(placed.pod.name, node, running or pod.containers, report)
