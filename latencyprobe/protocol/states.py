"""States and coverage as the protocol carries them; a state of a newer agent has a fallback.

Names and messages of a peer become printable here.
"""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.targets import TargetState
from latencyprobe.printable import printable
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

_COVERAGE_STATES: Mapping[CoverageState, pb.StageCoverage.State] = {
    CoverageState.ACTIVE: pb.StageCoverage.ACTIVE,
    CoverageState.PARTIAL: pb.StageCoverage.PARTIAL,
    CoverageState.UNAVAILABLE: pb.StageCoverage.UNAVAILABLE,
    CoverageState.IDLE: pb.StageCoverage.IDLE,
}
_TARGET_STATES: Mapping[TargetState, pb.TargetStatus.State] = {
    TargetState.ATTACHED: pb.TargetStatus.ATTACHED,
    TargetState.PENDING: pb.TargetStatus.PENDING,
    TargetState.GONE: pb.TargetStatus.GONE,
    TargetState.FAILED: pb.TargetStatus.FAILED,
}
_COVERAGE_STATES_BY_CODE = {code: state for state, code in _COVERAGE_STATES.items()}
_TARGET_STATES_BY_CODE = {code: state for state, code in _TARGET_STATES.items()}


def coverage_to_proto(stage: StageCoverage) -> pb.StageCoverage:
    """Convert the coverage of one stage to a message."""
    return pb.StageCoverage(
        name=stage.name,
        state=_COVERAGE_STATES[stage.state],
        hook=stage.hook,
        reason=stage.reason,
    )


def coverage_from_proto(message: pb.StageCoverage) -> StageCoverage:
    """Read the coverage from a message; an unknown state counts as unavailable."""
    return StageCoverage(
        printable(message.name),
        coverage_state_from_proto(message.state),
        printable(message.hook),
        printable(message.reason),
    )


def coverage_state_from_proto(code: pb.StageCoverage.State) -> CoverageState:
    """Read the field of a StageCoverage; an unknown state counts as unavailable."""
    return _COVERAGE_STATES_BY_CODE.get(code, CoverageState.UNAVAILABLE)


def target_state_to_proto(state: TargetState) -> pb.TargetStatus.State:
    """Convert a state to the field of a TargetStatus."""
    return _TARGET_STATES[state]


def target_state_from_proto(code: pb.TargetStatus.State) -> TargetState:
    """Read the field of a TargetStatus; an unknown state counts as pending."""
    return _TARGET_STATES_BY_CODE.get(code, TargetState.PENDING)
