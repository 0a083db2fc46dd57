"""The agent's values as messages of the protocol."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from latencyprobe import __version__
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.measurement import NodeMeasurement, largest_counters
from latencyprobe.printable import printable
from latencyprobe.protocol.measurements import (
    MAX_OPEN_COUNTERS,
    PROTOCOL_VERSION,
    measurement_to_proto,
    node_to_proto,
)
from latencyprobe.protocol.packets import counts_to_proto, packet_to_proto
from latencyprobe.protocol.states import coverage_to_proto, target_state_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent, Applied
from latencyprobe_agent.collector import ProbeFigures
from latencyprobe_agent.desired import Refusals
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.tracing import PacketNews

# A status is for people, who do not read ten thousand process ids.
MAX_PIDS_SHOWN = 256
_LONGEST_REFUSAL = 300


def coverage_messages(coverage: Iterable[StageCoverage]) -> list[pb.StageCoverage]:
    """Convert the coverage of every stage."""
    return [coverage_to_proto(stage) for stage in coverage]


def node_info(agent: Agent) -> pb.NodeInfo:
    """Describe the node and the stages that it can measure."""
    return pb.NodeInfo(
        agent_version=__version__,
        protocol_version=PROTOCOL_VERSION,
        instance_id=agent.instance_id,
        node_name=agent.node.node_name,
        kernel_release=agent.node.kernel_release,
        architecture=agent.node.architecture,
        kernel_types=agent.node.kernel_types,
        cgroup_version=agent.node.cgroup_version,
        coverage=coverage_messages(agent.coverage),
    )


def apply_result(applied: Applied) -> pb.ApplyResult:
    """Convert the facts of a state's targets, refused ones included."""
    statuses = {
        probe_id: [status_message(target_id, facts) for target_id, facts in targets.items()]
        for probe_id, targets in applied.standings.items()
    }
    for probe_id, refused in refused_statuses(applied.refused).items():
        statuses.setdefault(probe_id, []).extend(refused)
    return pb.ApplyResult(
        generation=applied.generation,
        probes=[pb.ProbeStatus(id=name, targets=each) for name, each in statuses.items()],
        coverage=coverage_messages(applied.coverage),
    )


def trace_events(news: PacketNews) -> pb.TraceEvents:
    """Convert traced packets, with the counts of all."""
    return pb.TraceEvents(
        packets=map(packet_to_proto, news.packets),
        counts=counts_to_proto(news.counts, news.sampling_ratio),
    )


def status_message(target_id: str, facts: TargetFacts) -> pb.TargetStatus:
    """Convert the facts of one target."""
    return pb.TargetStatus(
        id=target_id,
        state=target_state_to_proto(facts.state),
        message=printable(facts.message),
        pids=facts.pids[:MAX_PIDS_SHOWN],
        cgroup=printable(facts.cgroup),
    )


def refused_statuses(refused: Refusals) -> Mapping[str, list[pb.TargetStatus]]:
    """Return the statuses of refused targets by probe: of MAX_TARGETS at most, in turns.

    A client that respects the limits gets all of them. Other answers must have a bound too.
    """
    turns = (
        (turn, probe_id, target_id, message)
        for probe_id, messages in refused.items()
        for turn, (target_id, message) in enumerate(messages.items())
    )
    statuses: dict[str, list[pb.TargetStatus]] = defaultdict(list)
    for _, probe_id, target_id, message in heapq.nsmallest(MAX_TARGETS, turns):
        status = pb.TargetStatus(
            id=target_id, state=pb.TargetStatus.FAILED, message=message[:_LONGEST_REFUSAL]
        )
        statuses[probe_id].append(status)
    return statuses


def probe_report(figures: ProbeFigures, standings: Mapping[str, TargetFacts]) -> pb.ProbeReport:
    """Make one probe's report, with all its targets, also those without any figures."""
    return pb.ProbeReport(
        id=figures.probe.id,
        begin=_timestamp(_begin_ns(figures)),
        end=_timestamp(figures.end.unix_ns),
        targets=[
            _target_report(figures, status_message(target_id, facts))
            for target_id, facts in standings.items()
        ],
        node=node_to_proto(_bounded(figures.of_node())) if figures.probe.node_figures else None,
    )


def _bounded(measurement: NodeMeasurement) -> NodeMeasurement:
    counters = largest_counters(measurement.counters, MAX_OPEN_COUNTERS)
    return NodeMeasurement(measurement.stages, counters)


def _target_report(figures: ProbeFigures, status: pb.TargetStatus) -> pb.TargetReport:
    measurement = figures.of(status.id)
    stages, counters = measurement_to_proto(measurement)
    return pb.TargetReport(
        status=status,
        stages=stages,
        counters=counters,
        netns_counters=largest_counters(measurement.netns_counters, MAX_OPEN_COUNTERS),
    )


def _begin_ns(figures: ProbeFigures) -> int:
    """Return the begin by the wall clock as it is now: it may have been set since then."""
    elapsed_s = figures.end.monotonic - figures.begin.monotonic
    return figures.end.unix_ns - round(elapsed_s * 1e9)


def _timestamp(unix_ns: int) -> Timestamp:
    seconds, nanos = divmod(unix_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
