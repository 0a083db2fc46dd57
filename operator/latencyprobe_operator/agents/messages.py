"""Conversions between the operator's values and the messages to and from an agent."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.fairness import (
    MAX_PROBES,
    MAX_TARGETS,
    TargetName,
    WindowOfPod,
    oversize_targets,
    surplus_targets,
)
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.stages import BY_NAME, Module, counters_of
from latencyprobe.domain.targets import TargetState
from latencyprobe.printable import bounded
from latencyprobe.protocol.limits import LARGEST_NUMBER, MAX_STAGES, check_node, check_target
from latencyprobe.protocol.measurements import (
    MAX_NAME_LENGTH,
    MAX_REQUEST_BYTES,
    CorruptMessageError,
    is_short_name,
    measurement_from_proto,
    node_from_proto,
    with_short_names,
)
from latencyprobe.protocol.peers import peers_from_proto
from latencyprobe.protocol.pending import pending_from_proto
from latencyprobe.protocol.states import coverage_state_from_proto, target_state_from_proto
from latencyprobe.protocol.summaries import choice_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.desired_state import DesiredNodeState, ProbeOnNode
from latencyprobe_operator.model import ContainerTarget, PodTarget
from latencyprobe_operator.observed_state import ReportedProbe, ReportedTarget, TargetStatus

_LARGEST_PROBE_BYTES = 4096
_LARGEST_TARGET_BYTES = 1024
# Around a probe's or target's own bytes: tag and length.
_FRAME_BYTES = 4
# For the fields of a state beside its probes.
_STATE_BYTES = 64
# Of an agent's message, hook or reason.
MAX_TEXT_LENGTH = 400
_COVERED = frozenset({*BY_NAME, *counters_of(Module)})
_COVERING = frozenset({pb.StageCoverage.ACTIVE, pb.StageCoverage.PARTIAL})
# Taking this many in takes some 20 ms; then other agents have their turn.
_SLICE_TARGETS = 16
_NOT_ENCODABLE = (ValueError, TypeError, OverflowError)
# Most targets of a cluster share one of these.
_WITHOUT_MESSAGE = {state: TargetStatus(state, "") for state in TargetState}
# The nodes of a cluster have a few kinds of kernels.
_KINDS_OF_COVERAGE = 64


SentTargets = Mapping[str, frozenset[str]]
"""The ids of the targets in a message, by probe."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A desired state as it is sent: the targets within the agent's limits, and those left out.

    `left_out` has the latter's states with the reasons, by probe and target id.
    """

    message: pb.DesiredState
    left_out: Mapping[str, Mapping[str, TargetStatus]]
    sent: SentTargets

    @property
    def targets(self) -> frozenset[TargetName]:
        """The targets that the message holds."""
        return frozenset(
            (probe_uid, target_id) for probe_uid, ids in self.sent.items() for target_id in ids
        )


def outgoing_state(
    state: DesiredNodeState,
    *,
    generation: int,
    lease_s: int,
    term: int = 0,
    held: Container[TargetName] = (),
) -> Outgoing:
    """Return the desired state as the protocol carries it, within the limits of an agent.

    A target that cannot be encoded is left out alone. A pod without a running container counts as a
    target. `held`: targets that were sent before.
    """
    left_out: dict[str, dict[str, TargetStatus]] = defaultdict(dict)
    encoded: dict[str, _Encoded] = {}
    for probe in state:
        encoded[probe.key.uid] = each = _encode(probe)
        for target_id, reason in each.failures.items():
            left_out[probe.key.uid][target_id] = TargetStatus(TargetState.FAILED, reason)
    in_time = functools.partial(surplus_targets, windows=_windows(state, encoded))
    for surplus in (in_time, _oversize(encoded)):
        names = [
            (probe.key.namespace, (probe.key.uid, target_id))
            for probe in state
            for target_id in encoded[probe.key.uid].entries
        ]
        for (probe_uid, target_id), reason in surplus(names, held).items():
            left_out[probe_uid][target_id] = TargetStatus(TargetState.FAILED, reason)
            del encoded[probe_uid].entries[target_id]
    message = pb.DesiredState(generation=generation, lease=Duration(seconds=lease_s), term=term)
    sent: dict[str, frozenset[str]] = {}
    for probe_uid, each in encoded.items():
        if each.entries:
            message.probes.append(each.probe)
            for entry in each.entries.values():
                if isinstance(entry, pb.Target):
                    message.probes[-1].targets.append(entry)
                else:
                    message.probes[-1].pods.append(entry)
            sent[probe_uid] = frozenset(each.entries)
    left = (
        encoded[probe.key.uid].probe for probe in state if not probe.targets and not probe.waiting
    )
    for each_left in _fitting(left, message):
        message.probes.append(each_left)
        sent[each_left.id] = frozenset()
    return Outgoing(message, left_out, sent)


def _fitting(left: Iterable[pb.Probe], message: pb.DesiredState) -> Iterator[pb.Probe]:
    """Yield the probes without targets that fit beside those with some, which come first."""
    room = MAX_REQUEST_BYTES - _STATE_BYTES - message.ByteSize()
    places = MAX_PROBES - len(message.probes)
    for probe in left:
        room -= probe.ByteSize() + _FRAME_BYTES
        places -= 1
        if probe.id and room >= 0 and places >= 0:
            yield probe


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A probe's message without targets, its targets, and those that cannot be encoded.

    `entries`: by their ids, the running containers, and the pods without any.
    """

    probe: pb.Probe
    entries: dict[str, pb.Target | pb.Pod]
    failures: dict[str, str]


def _windows(
    state: DesiredNodeState, encoded: Mapping[str, _Encoded]
) -> dict[TargetName, WindowOfPod]:
    """Return the windows that an agent would keep of these targets."""
    return {
        (probe.key.uid, target_id): WindowOfPod(
            probe.key.uid,
            entry.container.pod_uid if isinstance(entry, pb.Target) else entry.uid,
            probe.interval_s,
        )
        for probe in state
        if probe.window_s
        for target_id, entry in encoded[probe.key.uid].entries.items()
    }


_Surplus = Callable[
    [Iterable[tuple[str, TargetName]], Container[TargetName]], dict[TargetName, str]
]


def _oversize(encoded: Mapping[str, _Encoded]) -> _Surplus:
    """Return a function that finds the targets that do not fit into one message."""

    def surplus(
        targets: Iterable[tuple[str, TargetName]], held: Container[TargetName]
    ) -> dict[TargetName, str]:
        probe_bytes = {
            uid: each.probe.ByteSize() + _FRAME_BYTES
            for uid, each in encoded.items()
            if each.entries
        }
        target_bytes = {
            (uid, target_id): entry.ByteSize() + _FRAME_BYTES
            for uid, each in encoded.items()
            for target_id, entry in each.entries.items()
        }
        room = MAX_REQUEST_BYTES - _STATE_BYTES
        return oversize_targets(targets, probe_bytes, target_bytes, room, held)

    return surplus


def _encode(probe: ProbeOnNode) -> _Encoded:
    entries: dict[str, pb.Target | pb.Pod] = {}
    failures: dict[str, str] = {}
    try:
        message = _within(_probe_message(probe), _LARGEST_PROBE_BYTES)
    except _NOT_ENCODABLE as error:
        reason = f"the operator cannot send this probe to an agent: {error}"
        return _Encoded(pb.Probe(), {}, {target.id: reason for target in probe.targets})
    for target in probe.targets:
        try:
            message_of_target = _target_message(target, whole_pod=probe.whole_pods)
            entries[target.id] = _within(message_of_target, _LARGEST_TARGET_BYTES)
        except _NOT_ENCODABLE as error:
            failures[target.id] = f"the operator cannot send this target to an agent: {error}"
    for pod in probe.waiting:
        try:
            entries[pod.pod_uid] = _within(_pod_message(pod), _LARGEST_TARGET_BYTES)
        except _NOT_ENCODABLE as error:
            failures[pod.pod_uid] = f"the operator cannot send this pod to an agent: {error}"
    return _Encoded(message, entries, failures)


_Message = TypeVar("_Message", pb.Probe, pb.Target, pb.Pod)


def _within(message: _Message, largest_bytes: int) -> _Message:
    size = message.ByteSize()
    if size > largest_bytes:
        raise ValueError(f"it takes {size} bytes; at most {largest_bytes} are allowed")
    return message


def _probe_message(probe: ProbeOnNode) -> pb.Probe:
    return pb.Probe(
        id=probe.key.uid,
        name=str(probe.key),
        namespace=probe.key.namespace,
        modules=[str(module) for module in probe.modules],
        filter=pb.SocketFilter(ports=probe.ports, protocols=probe.protocols),
        interval=_duration(probe.interval_s),
        max_cpu_percent=probe.max_cpu_percent,
        node_figures=probe.node_figures,
        window=_duration(probe.window_s),
        max_pods=probe.max_pods,
        metrics_per_pod=probe.metrics_per_pod,
        pods_in_full=choice_to_proto(probe.pods_in_full),
        objectives=map(_objective_message, probe.objectives),
    )


def _objective_message(objective: Objective) -> pb.Objective:
    max_ns = min(objective.max_ns, LARGEST_NUMBER)
    return pb.Objective(stage=objective.stage, percentile=objective.percentile, max_ns=max_ns)


def _target_message(target: ContainerTarget, *, whole_pod: bool) -> pb.Target:
    container = pb.Container(
        pod_uid=target.pod_uid,
        container_id=target.container_id,
        pod_name=target.pod_name,
        container_name=target.name,
        whole_pod=whole_pod,
    )
    return pb.Target(id=target.id, container=container)


def _pod_message(pod: PodTarget) -> pb.Pod:
    message = pb.Pod(uid=pod.pod_uid, name=pod.pod_name, containers=pod.containers)
    if message.ByteSize() > _LARGEST_TARGET_BYTES:
        message.ClearField("containers")  # it has very many
    return message


def _duration(seconds: float) -> Duration:
    nanoseconds = round(seconds * 1e9)
    return Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def instance_of(message: pb.NodeInfo | pb.Report) -> str:
    """Return the instance of the agent that sent this message."""
    return name_of(message.instance_id)


def coverage_of(messages: Sequence[pb.StageCoverage]) -> Mapping[str, StageCoverage]:
    """Decode the coverage of a node's stages and counters, by their names.

    Unknown names are left out. Raises CorruptMessageError for more than an agent can have.
    """
    if len(messages) > MAX_STAGES:
        raise CorruptMessageError(
            "coverage", f"{len(messages)} stages, but at most {MAX_STAGES} are allowed"
        )
    # The texts are cut before they are made printable: an escape for each of a million characters
    # would block the operator for seconds.
    return _shared_coverage(
        tuple(
            StageCoverage(
                message.name,
                coverage_state_from_proto(message.state),
                text_of(message.hook),
                text_of(message.reason),
            )
            for message in messages
            if message.name in _COVERED
        )
    )


def unknown_coverage(
    messages: Sequence[pb.StageCoverage], known: Mapping[str, StageCoverage]
) -> tuple[str, ...]:
    """Return the names of covered stages and counters that are unknown here.

    `known`: the coverage in the same messages, as from `coverage_of`.
    """
    if len(known) == len(messages):
        return ()
    return tuple(
        name_of(message.name)
        for message in messages
        if message.name not in _COVERED and message.state in _COVERING
    )


@functools.lru_cache(maxsize=_KINDS_OF_COVERAGE)
def _shared_coverage(stages: tuple[StageCoverage, ...]) -> Mapping[str, StageCoverage]:
    """Return one mapping for all nodes with the same coverage: it takes 13 KB."""
    return {stage.name: stage for stage in stages}


def targets_by_probe(
    result: pb.ApplyResult, sent: SentTargets
) -> dict[str, dict[str, TargetStatus]]:
    """Decode the states of the targets in an answer to Apply, by probe and target id.

    Probes and targets that were not sent are left out.
    """
    return {
        probe.id: {
            target.id: target_status(target)
            for target in probe.targets
            if target.id in sent[probe.id]
        }
        for probe in result.probes
        if sent.get(probe.id)
    }


def check_size(report: pb.Report) -> None:
    """Raise CorruptMessageError if a report has more parts than an agent has probes or targets."""
    targets = 0
    if len(report.probes) > MAX_PROBES:
        raise CorruptMessageError(
            "probes", f"{len(report.probes)} probes, but at most {MAX_PROBES} are allowed"
        )
    for probe in report.probes:
        targets += max(len(probe.targets), len(probe.summary.statuses), len(probe.pods))
    if targets > MAX_TARGETS:
        raise CorruptMessageError(
            "targets", f"{targets} targets, but at most {MAX_TARGETS} are allowed"
        )


def slices(message: pb.ProbeReport) -> Iterator[pb.ProbeReport]:
    """Yield a report as parts that each take little time; the targets of a pod stay together.

    A report on few targets, or on none as those with a summary, is its only part.
    """
    if len(message.targets) <= _SLICE_TARGETS:
        yield message
        return
    begun: list[pb.TargetReport] = []
    pod_uid = ""
    for target in message.targets:
        of_before, pod_uid = pod_uid, target.status.id.partition("/")[0]
        full = len(begun) >= _SLICE_TARGETS * (4 if pod_uid == of_before else 1)
        if full:
            yield pb.ProbeReport(id=message.id, targets=begun, more=True)
            begun = []
        begun.append(target)
    yield pb.ProbeReport(id=message.id, targets=begun, node=message.node, more=message.more)


def reported_probe(
    message: pb.ProbeReport, asked: Container[TargetName] | None = None
) -> ReportedProbe:
    """Decode a report on one probe; a corrupt part is left out, with the reason.

    Targets that were not asked for are left out, and counted. None: all were.
    """
    ours = [
        target
        for target in message.targets
        if asked is None or (message.id, target.status.id) in asked
    ]
    targets = tuple(map(_reported_target, ours))
    report = ReportedProbe(
        probe_uid=message.id,
        targets=targets,
        unasked=len(message.targets) - len(ours),
        is_complete=not message.more,
    )
    return with_node(report, message.node)


def with_node(report: ReportedProbe, message: pb.NodeContext) -> ReportedProbe:
    """Add the measurement of the node as a whole, or its contradiction."""
    try:
        check_node(message)
        return replace(report, node=_printable_node(node_from_proto(message)))
    except CorruptMessageError as error:
        return replace(report, node_corruption=text_of(str(error)))


def _reported_target(message: pb.TargetReport) -> ReportedTarget:
    target_id, status = message.status.id, target_status(message.status)
    try:
        check_target(message)
        measured = measurement_from_proto(message.stages, message.counters, message.netns_counters)
        pending = pending_from_proto(message.pending, "pending")
        peers = peers_from_proto(message.peers, "peers")
    except CorruptMessageError as error:
        return ReportedTarget(id=target_id, status=status, corruption=text_of(str(error)))
    return ReportedTarget(
        id=target_id,
        status=status,
        measurement=replace(_printable_measurement(measured), pending=pending or None, peers=peers),
        unknown_stages=tuple(name_of(s.name) for s in message.stages if s.name not in BY_NAME),
    )


def target_status(message: pb.TargetStatus) -> TargetStatus:
    """Decode the state of a target; an unknown state of a newer agent counts as pending."""
    state = target_state_from_proto(message.state)
    if not message.message:
        return _WITHOUT_MESSAGE[state]
    is_partial = message.partial and state is TargetState.ATTACHED
    return TargetStatus(state, text_of(message.message), is_partial)


def _printable_measurement(measurement: Measurement) -> Measurement:
    """Return the measurement with printable names: kernels and devices have any."""
    return replace(
        measurement,
        counters=with_short_names(measurement.counters),
        netns_counters=with_short_names(measurement.netns_counters),
    )


def _printable_node(node: NodeMeasurement) -> NodeMeasurement:
    counters = with_short_names(node.counters)
    if all(is_short_name(stage.detail) for stage in node.stages):
        return NodeMeasurement(node.stages, counters)
    stages: dict[NodeStage, StageMeasurement] = {}
    for stage, measured in node.stages.items():
        short = NodeStage(stage.name, name_of(stage.detail))
        stages[short] = stages[short] + measured if short in stages else measured
    return NodeMeasurement(stages, counters)


def text_of(text: str) -> str:
    """Return a text of an agent, printable and not too long."""
    return bounded(text, MAX_TEXT_LENGTH)


def name_of(name: str) -> str:
    """Return a name of an agent, printable and not too long."""
    return bounded(name, MAX_NAME_LENGTH)
