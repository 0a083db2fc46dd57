"""The agent's values as messages of the protocol."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from latencyprobe import __version__
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.measurement import NodeMeasurement, largest_counters
from latencyprobe.printable import bounded
from latencyprobe.protocol.cgroups import cgroups_to_proto
from latencyprobe.protocol.measurements import (
    MAX_OPEN_COUNTERS,
    PROTOCOL_VERSION,
    measurement_to_proto,
    node_to_proto,
)
from latencyprobe.protocol.packets import counts_to_proto, packet_to_proto
from latencyprobe.protocol.peers import peers_to_proto
from latencyprobe.protocol.pending import pending_to_proto
from latencyprobe.protocol.states import coverage_to_proto, target_state_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent, Applied
from latencyprobe_agent.collector import Moment, ProbeFigures
from latencyprobe_agent.desired import DesiredProbe, Refusals
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.tracing import PacketNews

CgroupsOf = Callable[[DesiredProbe, Mapping[str, int]], Sequence[Cgroup]]
"""Returns the known cgroups in the counters of a target of this probe."""

# A status is for people, who do not read ten thousand process ids.
MAX_PIDS_SHOWN = 64
_LONGEST_MESSAGE = 300
_LONGEST_CGROUP = 1024
# Beyond this size, an answer to Apply leaves out what the first report has as well.
_LARGEST_ANSWER_BYTES = 1 << 20


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
    result = pb.ApplyResult(
        generation=applied.generation,
        probes=[pb.ProbeStatus(id=name, targets=each) for name, each in statuses.items()],
        coverage=coverage_messages(applied.coverage),
    )
    if result.ByteSize() > _LARGEST_ANSWER_BYTES:
        for status in (status for probe in result.probes for status in probe.targets):
            for name in ("pids", "omitted_pids", "cgroup"):
                status.ClearField(name)
    return result


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
        message=bounded(facts.message, _LONGEST_MESSAGE),
        pids=facts.pids[:MAX_PIDS_SHOWN],
        omitted_pids=len(facts.pids[MAX_PIDS_SHOWN:]),
        partial=facts.is_partial,
        cgroup=bounded(facts.cgroup, _LONGEST_CGROUP),
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
            id=target_id, state=pb.TargetStatus.FAILED, message=message[:_LONGEST_MESSAGE]
        )
        statuses[probe_id].append(status)
    return statuses


def report_frame(figures: ProbeFigures) -> pb.ProbeReport:
    """Begin a part of one probe's report: the probe and the times, without any figures."""
    return pb.ProbeReport(
        id=figures.probe.id,
        begin=timestamp(begin_ns(figures.begin, figures.end)),
        end=timestamp(figures.end.unix_ns),
    )


def target_report(
    figures: ProbeFigures, target_id: str, facts: TargetFacts, cgroups_of: CgroupsOf
) -> pb.TargetReport:
    """Make the report on one target, which may have no figures."""
    measurement = figures.of(target_id)
    stages, counters = measurement_to_proto(measurement)
    return pb.TargetReport(
        status=status_message(target_id, facts),
        stages=stages,
        counters=counters,
        netns_counters=largest_counters(measurement.netns_counters, MAX_OPEN_COUNTERS),
        pending=pending_to_proto(measurement.pending),
        peers=peers_to_proto(measurement.peers),
        cgroups=cgroups_to_proto(cgroups_of(figures.probe, measurement.counters)),
    )


def node_context(figures: ProbeFigures) -> pb.NodeContext:
    """Make the report on the node as a whole."""
    node = figures.of_node()
    counters = largest_counters(node.counters, MAX_OPEN_COUNTERS)
    return node_to_proto(NodeMeasurement(node.stages, counters))


def begin_ns(begin: Moment, end: Moment) -> int:
    """Return the begin by the wall clock as it is now: it may have been set since then."""
    return end.unix_ns - round((end.monotonic - begin.monotonic) * 1e9)


def timestamp(unix_ns: int) -> Timestamp:
    """Convert nanoseconds since 1970."""
    seconds, nanos = divmod(unix_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
