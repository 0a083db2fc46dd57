"""Conversions between the operator's values and the messages to and from an agent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.fairness import TargetName, oversize_targets, surplus_targets
from latencyprobe.domain.stages import BY_NAME
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.measurements import (
    MAX_REQUEST_BYTES,
    CorruptMessageError,
    measurement_from_proto,
    node_from_proto,
)
from latencyprobe.protocol.states import coverage_from_proto, target_state_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.desired_state import DesiredNodeState, ProbeOnNode
from latencyprobe_operator.model import ContainerTarget
from latencyprobe_operator.observed_state import ReportedProbe, ReportedTarget, TargetStatus

_LARGEST_PROBE_BYTES = 4096
_LARGEST_TARGET_BYTES = 1024
# Around a probe's or target's own bytes: tag and length.
_FRAME_BYTES = 4
# For the fields of a state beside its probes.
_STATE_BYTES = 64
_NOT_ENCODABLE = (ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A desired state as it is sent: the targets within the agent's limits, and those left out.

    `left_out` has the latter's states with the reasons, by probe and target id.
    """

    message: pb.DesiredState
    left_out: Mapping[str, Mapping[str, TargetStatus]]

    @property
    def targets(self) -> frozenset[TargetName]:
        """The targets that the message holds."""
        return frozenset(
            (probe.id, target.id) for probe in self.message.probes for target in probe.targets
        )


def outgoing_state(
    state: DesiredNodeState,
    *,
    generation: int,
    lease_s: int,
    held: Container[TargetName] = (),
) -> Outgoing:
    """Return the desired state as the protocol carries it, within the limits of an agent.

    A target that cannot be encoded is left out alone. `held`: targets that were sent before.
    """
    left_out: dict[str, dict[str, TargetStatus]] = defaultdict(dict)
    encoded: dict[str, _Encoded] = {}
    for probe in state:
        encoded[probe.key.uid] = each = _encode(probe)
        for target_id, reason in each.failures.items():
            left_out[probe.key.uid][target_id] = TargetStatus(TargetState.FAILED, reason)
    for surplus in (surplus_targets, _oversize(encoded)):
        names = [
            (probe.key.namespace, (probe.key.uid, target_id))
            for probe in state
            for target_id in encoded[probe.key.uid].targets
        ]
        for (probe_uid, target_id), reason in surplus(names, held).items():
            left_out[probe_uid][target_id] = TargetStatus(TargetState.FAILED, reason)
            del encoded[probe_uid].targets[target_id]
    message = pb.DesiredState(generation=generation, lease=Duration(seconds=lease_s))
    for each in encoded.values():
        if each.targets:
            message.probes.append(each.probe)
            message.probes[-1].targets.extend(each.targets.values())
    return Outgoing(message, left_out)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A probe's message without targets, its targets, and those that cannot be encoded."""

    probe: pb.Probe
    targets: dict[str, pb.Target]
    failures: dict[str, str]


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
            if each.targets
        }
        target_bytes = {
            (uid, target_id): target.ByteSize() + _FRAME_BYTES
            for uid, each in encoded.items()
            for target_id, target in each.targets.items()
        }
        room = MAX_REQUEST_BYTES - _STATE_BYTES
        if sum(probe_bytes.values()) + sum(target_bytes.values()) <= room:
            return {}
        return oversize_targets(targets, probe_bytes, target_bytes, room, held)

    return surplus


def _encode(probe: ProbeOnNode) -> _Encoded:
    targets: dict[str, pb.Target] = {}
    failures: dict[str, str] = {}
    try:
        message = _within(_probe_message(probe), _LARGEST_PROBE_BYTES)
    except _NOT_ENCODABLE as error:
        reason = f"the operator cannot send this probe to an agent: {error}"
        return _Encoded(pb.Probe(), {}, {target.id: reason for target in probe.targets})
    for target in probe.targets:
        try:
            targets[target.id] = _within(_target_message(target), _LARGEST_TARGET_BYTES)
        except _NOT_ENCODABLE as error:
            failures[target.id] = f"the operator cannot send this target to an agent: {error}"
    return _Encoded(message, targets, failures)


_Message = TypeVar("_Message", pb.Probe, pb.Target)


def _within(message: _Message, largest_bytes: int) -> _Message:
    size = message.ByteSize()
    if size > largest_bytes:
        raise ValueError(f"it takes {size} bytes; at most {largest_bytes} are allowed")
    return message


def _probe_message(probe: ProbeOnNode) -> pb.Probe:
    interval_ns = round(probe.interval_s * 1e9)
    return pb.Probe(
        id=probe.key.uid,
        name=str(probe.key),
        namespace=probe.key.namespace,
        modules=[str(module) for module in probe.modules],
        filter=pb.SocketFilter(ports=probe.ports, protocols=probe.protocols),
        interval=Duration(seconds=interval_ns // 10**9, nanos=interval_ns % 10**9),
        max_cpu_percent=probe.max_cpu_percent,
    )


def _target_message(target: ContainerTarget) -> pb.Target:
    container = pb.Container(pod_uid=target.pod_uid, container_id=target.container.id)
    return pb.Target(id=target.id, container=container)


def coverage_of(messages: Iterable[pb.StageCoverage]) -> dict[str, StageCoverage]:
    """Decode the coverage of a node's stages, by their names."""
    return {message.name: coverage_from_proto(message) for message in messages}


def targets_by_probe(result: pb.ApplyResult) -> dict[str, dict[str, TargetStatus]]:
    """Decode the states of the targets in an answer to Apply, by probe and target id."""
    return {
        probe.id: {target.id: _target_status(target) for target in probe.targets}
        for probe in result.probes
    }


def reported_probe(message: pb.ProbeReport) -> ReportedProbe:
    """Decode a report on one probe; a corrupt part is left out, with the reason."""
    targets = tuple(map(_reported_target, message.targets))
    try:
        node = node_from_proto(message.node)
    except CorruptMessageError as error:
        return ReportedProbe(probe_uid=message.id, targets=targets, node_corruption=str(error))
    return ReportedProbe(probe_uid=message.id, targets=targets, node=node)


def _reported_target(message: pb.TargetReport) -> ReportedTarget:
    target_id, status = message.status.id, _target_status(message.status)
    try:
        measurement = measurement_from_proto(
            message.stages, message.counters, message.netns_counters
        )
    except CorruptMessageError as error:
        return ReportedTarget(id=target_id, status=status, corruption=str(error))
    return ReportedTarget(
        id=target_id,
        status=status,
        measurement=measurement,
        unknown_stages=tuple(s.name for s in message.stages if s.name not in BY_NAME),
    )


def _target_status(message: pb.TargetStatus) -> TargetStatus:
    """Decode the state of a target; an unknown state of a newer agent counts as pending."""
    return TargetStatus(target_state_from_proto(message.state), message.message)
