"""States of coverage and of targets: the same names in the code, the documents and the protocol."""

from __future__ import annotations

from typing import cast

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.states import (
    coverage_from_proto,
    coverage_to_proto,
    target_state_from_proto,
    target_state_to_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.serving.metrics import AgentMetrics

OF_A_NEWER_AGENT = 99


@pytest.mark.parametrize("state", CoverageState)
def test_coverage_survives_the_protocol(state: CoverageState) -> None:
    stage = StageCoverage("rx.total", state, "tp_btf/x", "some are missing")
    assert coverage_from_proto(coverage_to_proto(stage)) == stage


@pytest.mark.parametrize("state", TargetState)
def test_a_targets_state_survives_the_protocol(state: TargetState) -> None:
    assert target_state_from_proto(target_state_to_proto(state)) is state


@pytest.mark.parametrize("code", [pb.StageCoverage.STATE_UNSPECIFIED, OF_A_NEWER_AGENT])
def test_unknown_coverage_counts_as_unavailable(code: int) -> None:
    message = pb.StageCoverage(name="rx.total", state=cast("pb.StageCoverage.State", code))
    assert coverage_from_proto(message).state is CoverageState.UNAVAILABLE


@pytest.mark.parametrize("code", [pb.TargetStatus.STATE_UNSPECIFIED, OF_A_NEWER_AGENT])
def test_a_target_of_unknown_state_counts_as_pending(code: int) -> None:
    assert target_state_from_proto(cast("pb.TargetStatus.State", code)) is TargetState.PENDING


def test_labels_of_metrics_are_in_lower_case() -> None:
    metrics = AgentMetrics()
    metrics.show_targets({TargetState.ATTACHED: 3})
    assert metrics.registry.get_sample_value("latencyprobe_targets", {"state": "attached"}) == 3
