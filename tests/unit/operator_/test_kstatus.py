"""Tools that wait for a probe by the rules of kstatus neither hang nor go on too early."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.api.conditions import ReadyReason, StalledReason
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.facts import NodeFacts, Problem
from tests.unit.operator_.crd_schema import read_schema
from tests.unit.operator_.kstatus import CURRENT, FAILED, IN_PROGRESS, kstatus
from tests.unit.operator_.status_facts import NOW, READY, facts

GENERATION = 3
LASTING = set(map(str, StalledReason))


def judged(**parts: Any) -> str:
    """The judgement on a probe with these facts."""
    return kstatus(GENERATION, status.build(facts(**parts), now=NOW))


def test_a_probe_that_the_operator_has_not_seen_is_in_progress() -> None:
    default = read_schema()["properties"]["status"]["default"]

    assert kstatus(1, default) == IN_PROGRESS
    assert kstatus(1, {}) == CURRENT, "what it would be without the default"


def test_a_change_that_the_operator_has_not_seen_is_in_progress() -> None:
    document = status.build(facts(), now=NOW)

    assert kstatus(GENERATION, document) == CURRENT
    assert kstatus(GENERATION + 1, document) == IN_PROGRESS


@pytest.mark.parametrize(
    "parts",
    [
        {"phase": Phase.SUSPENDED},
        {"phase": Phase.COMPLETED},
        {"matched_pods": 0, "nodes": [], "start_time": None},
        {"nodes": [], "containers": 0, "start_time": None},
        {"nodes": [READY]},
    ],
)
def test_a_probe_that_measures_or_has_nothing_to_do_is_current(parts: dict[str, Any]) -> None:
    assert judged(**parts) == CURRENT


@pytest.mark.parametrize("reason", list(StalledReason))
def test_a_spec_that_cannot_be_carried_out_has_failed(reason: str) -> None:
    problem = Problem(ReadyReason(reason), "it cannot be carried out")

    assert judged(problem=problem, nodes=[]) == FAILED
    assert judged(problem=problem, nodes=[], spec=None) == FAILED


@pytest.mark.parametrize("reason", [ReadyReason.LISTING_PODS, ReadyReason.PODS_UNAVAILABLE])
def test_a_problem_that_passes_by_itself_is_in_progress(reason: ReadyReason) -> None:
    assert judged(problem=Problem(reason, "wait"), nodes=[]) == IN_PROGRESS


@given(
    states=st.lists(st.sampled_from(list(NodeState)), max_size=4),
    attached=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    pods=st.integers(0, 2),
    phase=st.sampled_from([None, Phase.SUSPENDED, Phase.COMPLETED]),
    reason=st.sampled_from([None, *ReadyReason]),
)
def test_a_probe_is_current_if_and_only_if_it_measures_or_has_nothing_to_do(
    states: list[NodeState],
    attached: list[int],
    pods: int,
    phase: Phase | None,
    reason: ReadyReason | None,
) -> None:
    nodes = [
        NodeFacts(f"node-{number}", state, attached=count)
        for number, (state, count) in enumerate(zip(states, attached, strict=False))
    ]
    problem = Problem(reason, "a problem") if reason else None
    idle = phase is not None or (problem is None and (not pods or not nodes))
    measures = problem is None and any(node.attached for node in nodes)
    if idle or measures:
        expected = CURRENT
    else:
        expected = IN_PROGRESS if problem is None or str(reason) not in LASTING else FAILED

    assert judged(nodes=nodes, matched_pods=pods, phase=phase, problem=problem) == expected
