"""The intake of agents' reports on one probe: its summaries, and its record of staleness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from latencyprobe.domain.measurement import NOTHING_OF_THE_NODE
from latencyprobe_operator.api.spec import ProbeSpec
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.desired_state import ChoosePods, PlacedPod
from latencyprobe_operator.observed_state import AgentView, ReportedProbe
from latencyprobe_operator.probes.accusations import causes_in
from latencyprobe_operator.probes.deltas import summarised
from latencyprobe_operator.probes.nodes import not_covered
from latencyprobe_operator.probes.staleness import ReportTimes
from latencyprobe_operator.probes.summaries import LATE_INTERVALS, NodeSummaries, within_limits


class ReportIntake:
    """The figures that agents have reported of one probe.

    Large, because reports of older agents each have a state beside the figures.
    """

    def __init__(
        self,
        *,
        previous: Mapping[str, Any],
        agent: Callable[[str], AgentView],
        choose: ChoosePods,
        measured_s: Callable[[], float],
        node_figures: bool = False,
    ) -> None:
        """Take in nothing yet. `agent` returns the view of the agent of a node.

        `previous`: the status of an earlier operator. `measured_s` returns the time since the begin
        of measuring, by this operator or an earlier one. `node_figures`: figures of whole nodes are
        kept.
        """
        self._measured_s = measured_s
        self._node_figures = node_figures
        # Of older agents: the parts of reports that are not complete, by node.
        self._parts: dict[str, ReportedProbe] = {}
        # Of older agents: the times of the newest reports that were taken, by node and in order.
        self._judged: dict[str, float] = {}
        # Of older agents: the last report that came too soon, and its time, by node.
        self._early: dict[str, tuple[float, ReportedProbe]] = {}
        self.summaries = NodeSummaries(causes_in(previous))
        self.report_times = ReportTimes()
        self.reported = False
        """An agent has reported since measuring began."""
        self._last_report_time: str | None = previous.get("lastReportTime")
        self._last_report: float | None = None
        self.arrived = asyncio.Event()
        """Set with each report; a reader clears it."""
        self._agent = agent
        self._choose = choose

    @property
    def last_report_time(self) -> str | None:
        """Return the API's timestamp of the last report."""
        return self._last_report_time if self._last_report is None else timestamp(self._last_report)

    def take(
        self,
        node: str,
        report: ReportedProbe,
        placed: Mapping[str, PlacedPod],
        spec: ProbeSpec,
        *,
        at: float,
        wall: float,
    ) -> bool:
        """Take in the report of a node; pods of other nodes among these are left out.

        Figures of the whole node that are not allowed are dropped: older agents send them always.
        Returns False for a part that is not the last, and if it brings pods in full alone. Also for
        a report of an older agent too soon after another one. The last such report is added to the
        next one that is taken. `wall` is since the epoch.
        """
        self.arrived.set()
        report = self._allowed(report, placed)
        if report.pods and report.summary is None:
            self.summaries.take_more(node, _of_node(report, node, placed, spec.max_pods))
            return False
        keeps_window = report.summary is not None
        if keeps_window:
            report = _of_node(report, node, placed, spec.max_pods)
        else:
            report = self._joined(node, report)
            if not report.is_complete:
                return False
            if not self._is_due(node, spec, at):
                # To add up a flood of reports takes as long as to judge some of them.
                self._early[node] = at, report
                return False
            report = self._with_early(node, report, since=at - LATE_INTERVALS * spec.interval_s)
            report = self._summarised(report, node, placed, spec)
        if report.summary is not None:
            self.summaries.take(
                node,
                report,
                report.summary,
                at=at,
                window_s=spec.window_s,
                keeps_window=keeps_window,
                wanted_s=lambda: (
                    min(self._measured_s(), wall - _first_start(node, placed, wall))
                    - _age_s(report, wall, spec.interval_s)
                ),
            )
        self.reported = True
        self._last_report = wall
        self.report_times.note(node, at=at, wall=wall)
        return True

    def _is_due(self, node: str, spec: ProbeSpec, at: float) -> bool:
        """Decide whether half an interval has passed since a report of an older agent; note this.

        To judge all pods of a node is one step of the event loop.
        """
        judged, since = self._judged, at - spec.interval_s / 2
        while judged and judged[next(iter(judged))] <= since:
            del judged[next(iter(judged))]
        if node in judged:
            return False
        judged[node] = at
        return True

    def _joined(self, node: str, report: ReportedProbe) -> ReportedProbe:
        """Return the report with the parts before it; keep it for the parts after it.

        A report has each target once. One that comes again replaces the one before, so that parts
        without an end take no more memory than the targets of the node.
        """
        before = self._parts.pop(node, None)
        if before:
            targets = {each.id: each for each in (*before.targets, *report.targets)}
            of_node = within_limits(before.node + report.node)
            report = replace(report, targets=tuple(targets.values()), node=of_node)
        if not report.is_complete:
            self._parts[node] = report
        return report

    def _with_early(self, node: str, report: ReportedProbe, *, since: float) -> ReportedProbe:
        """Return the report, and the figures of the one that came too soon before it."""
        at, before = self._early.pop(node, (since, None))
        return report if before is None or at < since else _added_up(before, report)

    def _allowed(self, report: ReportedProbe, placed: Mapping[str, PlacedPod]) -> ReportedProbe:
        """Return the part of a report that the probe's tenant may see."""
        if self._node_figures:
            return report

        def of_host(pod_uid: str) -> bool:
            pod = placed.get(pod_uid)
            return pod is None or pod.pod.host_network

        if (
            not report.node
            and not report.targets
            and not any(of_host(each.pod_uid) for each in report.pods)
        ):
            return report
        pods = tuple(
            replace(each, report=replace(each.report, netns_counters={}))
            if of_host(each.pod_uid)
            else each
            for each in report.pods
        )
        targets = tuple(
            replace(each, measurement=replace(each.measurement, netns_counters={}))
            if of_host(each.id.partition("/")[0])
            else each
            for each in report.targets
        )
        return replace(report, node=NOTHING_OF_THE_NODE, pods=pods, targets=targets)

    def _summarised(
        self, report: ReportedProbe, node: str, placed: Mapping[str, PlacedPod], spec: ProbeSpec
    ) -> ReportedProbe:
        uids = {target.id.partition("/")[0] for target in report.targets}
        return summarised(
            report,
            {uid: placed[uid] for uid in uids if uid in placed and placed[uid].pod.node == node},
            spec.modules,
            sees_node=self._node_figures,
            uncounted=not_covered(self._agent(node)),
            max_pods=spec.max_pods,
            choice=self._choose(node),
            objectives=spec.bounds,
        )

    def adopt(self, spec: ProbeSpec, before: ProbeSpec | None, *, at: float) -> None:
        """Drop all figures if a new spec measures something else."""
        if before and _measured(before) != _measured(spec):
            self.clear(at=at)

    def clear(self, *, at: float) -> None:
        """Begin another measurement."""
        self.summaries.clear(at=at)
        self._parts.clear()
        self._judged.clear()
        self._early.clear()
        self.reported = False


def _age_s(report: ReportedProbe, wall: float, interval_s: float) -> float:
    """Return the age of a report: an agent sends its newest one again to another operator.

    Within what is possible, since the clock of the agent's node may be set.
    """
    return min(max(wall - report.span.end, 0.0), LATE_INTERVALS * interval_s)


def _first_start(node: str, placed: Mapping[str, PlacedPod], now: float) -> float:
    """Return the earliest start of a running container among these pods on a node; else `now`."""
    starts = (each.pod.started for each in placed.values() if each.pod.node == node)
    return min((start for start in starts if start), default=now)


def _of_node(
    report: ReportedProbe, node: str, placed: Mapping[str, PlacedPod], most: int
) -> ReportedProbe:
    """Return the report without pods that run on other nodes, and at most this number of pods."""

    def runs_elsewhere(pod_uid: str) -> bool:
        pod = placed.get(pod_uid)
        return pod is not None and pod.pod.node != node

    pods = tuple(each for each in report.pods[:most] if not runs_elsewhere(each.pod_uid))
    summary = report.summary
    if summary is not None:
        scores = tuple(each for each in summary.scores[:most] if not runs_elsewhere(each.pod_uid))
        if len(scores) < len(summary.scores):
            summary = replace(summary, scores=scores)
    if len(pods) == len(report.pods) and summary is report.summary:
        return report
    return replace(report, pods=pods, summary=summary)


def _added_up(before: ReportedProbe, report: ReportedProbe) -> ReportedProbe:
    """Return the report of an older agent with the figures of the one before."""
    measured = {each.id: each for each in before.targets}
    targets = [
        replace(each, measurement=measured.pop(each.id).measurement + each.measurement)
        if each.id in measured
        else each
        for each in report.targets
    ]
    of_node = within_limits(before.node + report.node)
    return replace(report, targets=(*targets, *measured.values()), node=of_node)


def _measured(spec: ProbeSpec) -> tuple[object, ...]:
    """Return the parts that must be equal for two specs' figures to be added up."""
    return spec.selector, spec.containers, spec.modules, spec.ports, spec.protocols
