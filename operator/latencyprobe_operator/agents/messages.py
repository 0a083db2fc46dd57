"""Desired states and agents' answers, between our values and the protocol's messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.duration_pb2 import Duration

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.api.status import StageGap
from latencyprobe_operator.desired_state import NodeState, ProbeOnNode

FULLY_COVERED = "Active"
"""The state of a stage that is measured for every packet."""
NOT_COVERED = "Unavailable"
"""The state of a stage or counter that the node can't tell of."""

_COVERAGE = {
    pb.StageCoverage.ACTIVE: FULLY_COVERED,
    pb.StageCoverage.PARTIAL: "Partial",
    pb.StageCoverage.UNAVAILABLE: NOT_COVERED,
    # No gap: the stage is switched on by the very state that is being applied.
    pb.StageCoverage.IDLE: FULLY_COVERED,
}


class TargetState(StrEnum):
    """What an agent says of one target."""

    ATTACHED = "Attached"
    PENDING = "Pending"
    GONE = "Gone"
    FAILED = "Failed"


_TARGET_STATES = {
    pb.TargetStatus.ATTACHED: TargetState.ATTACHED,
    pb.TargetStatus.PENDING: TargetState.PENDING,
    pb.TargetStatus.GONE: TargetState.GONE,
    pb.TargetStatus.FAILED: TargetState.FAILED,
}


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """An agent's word on one target; `message` says why where it is not attached."""

    state: TargetState
    message: str


def desired_state_message(
    state: NodeState, *, generation: int, lease_seconds: int
) -> pb.DesiredState:
    """The desired state as the protocol carries it."""
    return pb.DesiredState(
        generation=generation,
        probes=[_probe_message(probe) for probe in state],
        lease=Duration(seconds=lease_seconds),
    )


def _probe_message(probe: ProbeOnNode) -> pb.Probe:
    interval_ns = round(probe.interval_seconds * 1e9)
    return pb.Probe(
        id=probe.key.uid,
        name=str(probe.key),
        modules=[str(module) for module in probe.modules],
        filter=pb.SocketFilter(ports=probe.ports, protocols=probe.protocols),
        interval=Duration(seconds=interval_ns // 10**9, nanos=interval_ns % 10**9),
        max_cpu_percent=probe.max_cpu_percent,
        targets=[
            pb.Target(
                id=target.id,
                container=pb.Container(pod_uid=target.pod_uid, container_id=target.container.id),
            )
            for target in probe.targets
        ],
    )


def coverage_of(messages: Iterable[pb.StageCoverage]) -> dict[str, StageGap]:
    """What a node measures of each stage, by the stage's name."""
    return {
        message.name: StageGap(
            message.name,
            _COVERAGE.get(message.state, NOT_COVERED),
            message.hook,
            message.reason,
        )
        for message in messages
    }


def target_status(message: pb.TargetStatus) -> TargetStatus:
    """An agent's word on one target; a state of a newer agent counts as pending."""
    state = _TARGET_STATES.get(message.state, TargetState.PENDING)
    return TargetStatus(state, message.message)
