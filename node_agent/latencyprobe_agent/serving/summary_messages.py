"""Reports over windows as messages: the summary, pods in full, and changed states of targets."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.summary import PodReport, ProbeSummary
from latencyprobe.printable import bounded
from latencyprobe.protocol.limits import LARGEST_NUMBER
from latencyprobe.protocol.measurements import node_to_proto
from latencyprobe.protocol.states import target_state_to_proto
from latencyprobe.protocol.summaries import MAX_CONTAINERS, pod_to_proto, summary_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.collector import only_node
from latencyprobe_agent.serving.messages import begin_ns, timestamp
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.windows.probe_window import WindowReport

_LONGEST_MESSAGE = 300
# A node has a stage for each interrupt handler: the costliest fit.
_NODE_BYTES = 1 << 18

_Key = TypeVar("_Key", str, NodeStage)


def frame(report: WindowReport) -> pb.ProbeReport:
    """Begin a report: the probe and the times, without any figures."""
    return pb.ProbeReport(
        id=report.probe.id,
        begin=timestamp(begin_ns(report.begin, report.end)),
        end=timestamp(report.end.unix_ns),
    )


def summary_report(report: WindowReport, statuses: Iterable[pb.TargetStatus]) -> pb.ProbeReport:
    """Make a probe's report, with its summary and without pods."""
    message = frame(report)
    message.summary.CopyFrom(summary_to_proto(_within_limits(report.summary)))
    message.summary.statuses.extend(statuses)
    if report.probe.node_figures:
        message.node.CopyFrom(_node_context(report))
    return message


def _node_context(report: WindowReport) -> pb.NodeContext:
    """Make the report on the node, with as many of its stages as fit beside a summary."""
    context = node_to_proto(_node_within_limits(only_node(report.node, report.probe.modules)))
    fitting = pb.NodeContext(counters=context.counters)
    room = _NODE_BYTES - fitting.ByteSize()
    for stage in sorted(context.stages, key=lambda each: each.histogram.sum_ns, reverse=True):
        room -= stage.ByteSize()
        if room < 0:
            break
        fitting.stages.append(stage)
    return fitting


def with_pods(
    begun: pb.ProbeReport,
    pods: Sequence[PodReport],
    make_frame: Callable[[], pb.ProbeReport],
    most: int,
) -> Iterator[pb.ProbeReport]:
    """Add pods to a report; yield it, and more of them for the pods beyond this size."""
    size = begun.ByteSize()
    for pod in pods:
        message = pod_to_proto(_pod_within_limits(pod))
        more = message.ByteSize()
        if size + more > most and begun.pods:
            yield begun
            begun = make_frame()
            size = begun.ByteSize()
        begun.pods.append(message)
        size += more
    yield begun


class StatusChanges:
    """The states of targets as one stream has reported them, by probe."""

    def __init__(self) -> None:
        self._reported: dict[str, dict[str, pb.TargetStatus]] = {}

    def take(self, probe_id: str, standings: Mapping[str, TargetFacts]) -> list[pb.TargetStatus]:
        """Return the states that have changed since the last call for this probe."""
        before = self._reported.get(probe_id, {})
        now = {target_id: _status(target_id, facts) for target_id, facts in standings.items()}
        self._reported[probe_id] = now
        return [status for target_id, status in now.items() if before.get(target_id) != status]

    def keep(self, probe_ids: Container[str]) -> None:
        """Forget the probes that do not exist any more."""
        self._reported = {name: each for name, each in self._reported.items() if name in probe_ids}


def _status(target_id: str, facts: TargetFacts) -> pb.TargetStatus:
    """Convert the state alone: processes and cgroup are for the local command."""
    return pb.TargetStatus(
        id=target_id,
        state=target_state_to_proto(facts.state),
        message=bounded(facts.message, _LONGEST_MESSAGE),
        partial=facts.is_partial,
    )


def _within_limits(summary: ProbeSummary) -> ProbeSummary:
    """Limit the sums over all pods to numbers that a client takes in."""
    merged = summary.merged
    return replace(
        summary,
        merged=Measurement(_limited_stages(merged.stages), _limited(merged.counters)),
        waiting_ns=_limited(summary.waiting_ns),
    )


def _pod_within_limits(pod: PodReport) -> PodReport:
    """Limit a pod's containers, and its sums: a hundred packets that wait all day exceed these."""
    report = pod.report
    limited = replace(
        report,
        counters=_limited(report.counters),
        netns_counters=_limited(report.netns_counters),
        verdict=replace(report.verdict, waiting_ns=_limited(report.verdict.waiting_ns)),
    )
    return replace(pod, containers=pod.containers[:MAX_CONTAINERS], report=limited)


def _node_within_limits(node: NodeMeasurement) -> NodeMeasurement:
    return NodeMeasurement(_limited_stages(node.stages), _limited(node.counters))


def _limited_stages(stages: Mapping[_Key, StageMeasurement]) -> dict[_Key, StageMeasurement]:
    return {
        key: replace(
            measured,
            histogram=replace(
                measured.histogram, sum_ns=min(measured.histogram.sum_ns, LARGEST_NUMBER)
            ),
        )
        if measured.histogram.sum_ns > LARGEST_NUMBER
        else measured
        for key, measured in stages.items()
    }


def _limited(figures: Mapping[str, int]) -> dict[str, int]:
    return {name: min(figure, LARGEST_NUMBER) for name, figure in figures.items()}
