"""What a node's agent means for a probe."""

from __future__ import annotations

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import DEFAULT_MODULES, Module, stages_of
from latencyprobe.domain.targets import TargetState
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.model import targets_of
from latencyprobe_operator.observed_state import ATTACHED, AgentView, TargetStatus
from latencyprobe_operator.probes.nodes import node_facts, not_covered
from latencyprobe_operator.probes.staleness import Staleness
from tools.fakes.samples import pod, target_id

TARGETS = targets_of(pod("a"), ()) + targets_of(pod("b"), ())
PENDING = TargetStatus(TargetState.PENDING, "no cgroup of this container yet")
FAILED = TargetStatus(TargetState.FAILED, "a foreign network namespace")
GONE = TargetStatus(TargetState.GONE, "")


@pytest.mark.parametrize(
    ("first", "second", "state", "message", "attached"),
    [
        (ATTACHED, ATTACHED, NodeState.READY, "", 2),
        (ATTACHED, PENDING, NodeState.ATTACHING, "no cgroup of this container yet", 1),
        (PENDING, FAILED, NodeState.FAILED, "a foreign network namespace", 0),
        (ATTACHED, GONE, NodeState.READY, "", 1),
        (GONE, GONE, NodeState.ATTACHING, "gone (and 1 more)", 0),
        (None, ATTACHED, NodeState.ATTACHING, "not found yet", 1),
    ],
)
def test_a_node_is_as_good_as_its_worst_target(
    first: TargetStatus | None,
    second: TargetStatus,
    state: NodeState,
    message: str,
    attached: int,
) -> None:
    applied = {"uid": TARGETS if first else TARGETS[1:]}
    statuses = {target_id("a"): first, target_id("b"): second}
    others = {each: status for each, status in statuses.items() if status and status != ATTACHED}
    agent = AgentView(NodeState.READY, applied=applied, others={"uid": others})

    facts = node_facts("node-a", agent, "uid", TARGETS, DEFAULT_MODULES)

    assert facts.state is state
    assert facts.message.removeprefix("container server: ") == message
    assert facts.attached == attached


@pytest.mark.parametrize(
    "state", [NodeState.NO_AGENT, NodeState.UNREACHABLE, NodeState.VERSION_SKEW]
)
def test_an_agent_that_is_away_measures_nothing(state: NodeState) -> None:
    agent = AgentView(state, "why", applied={"uid": TARGETS})

    facts = node_facts("node-a", agent, "uid", TARGETS, DEFAULT_MODULES)

    assert (facts.state, facts.message, facts.attached) == (state, "why", 0)


def test_gaps_of_a_node_are_known_by_name() -> None:
    gaps = (
        StageCoverage("rx.host", CoverageState.PARTIAL, "tp_btf/x", "some are missing"),
        StageCoverage("acceptQueueOverflows", CoverageState.UNAVAILABLE, "", "no such tracepoint"),
    )
    agent = AgentView(
        NodeState.READY,
        coverage={gap.name: gap for gap in gaps},
        applied={"uid": TARGETS},
    )

    assert not_covered(agent) == {"acceptQueueOverflows"}
    assert node_facts("n", agent, "uid", TARGETS, [Module.SCHED]).state is NodeState.READY


@pytest.mark.parametrize(
    ("name", "state", "is_gap"),
    [
        ("pending", CoverageState.UNAVAILABLE, True),
        # by more peers than the node has room for, which are another tenant's
        ("pending", CoverageState.PARTIAL, False),
        # each kernel before 6.11 lacks a part of these
        ("drops", CoverageState.PARTIAL, False),
        ("receiveQueueOverflows", CoverageState.PARTIAL, False),
        ("waitedThrottledNs", CoverageState.UNAVAILABLE, False),
    ],
)
def test_of_all_that_is_no_stage_only_unread_pending_is_a_gap(
    name: str, state: CoverageState, is_gap: bool
) -> None:
    gap = StageCoverage(name, state, reason="iter/task_file: requires BTF")
    coverage = {
        stage.name: StageCoverage(stage.name, CoverageState.ACTIVE) for stage in stages_of(Module)
    }
    agent = AgentView(NodeState.READY, coverage=coverage | {name: gap}, applied={"uid": TARGETS})

    asked, other = (
        node_facts("n", agent, "uid", TARGETS, [module]) for module in (Module.TCP, Module.SCHED)
    )
    expected = (NodeState.PARTIAL, (gap,)) if is_gap else (NodeState.READY, ())
    assert (asked.state, asked.gaps) == expected
    assert (other.state, other.gaps) == (NodeState.READY, ())


def test_a_stage_that_is_not_measured_makes_the_node_partial() -> None:
    gap = StageCoverage("rx.host", CoverageState.UNAVAILABLE, "", "no such tracepoint")
    agent = AgentView(
        NodeState.READY,
        coverage={
            "rx.host": gap,
            "rx.total": StageCoverage("rx.total", CoverageState.ACTIVE, "tp_btf", ""),
        },
        applied={"uid": TARGETS},
    )

    assert node_facts("n", agent, "uid", TARGETS, [Module.RX]).gaps == (gap,)
    assert node_facts("n", agent, "uid", TARGETS, [Module.RX]).state is NodeState.PARTIAL
    assert node_facts("n", agent, "uid", TARGETS, [Module.TCP]).state is NodeState.READY


def test_a_module_that_an_older_agent_does_not_know_makes_the_node_partial() -> None:
    known = {
        stage.name: StageCoverage(stage.name, CoverageState.ACTIVE)
        for stage in stages_of([Module.RX, Module.TX])
    }
    agent = AgentView(NodeState.READY, coverage=known, applied={"uid": TARGETS})

    assert node_facts("n", agent, "uid", TARGETS, [Module.RX]).state is NodeState.READY
    facts = node_facts("n", agent, "uid", TARGETS, [Module.RX, Module.SCHED])
    assert facts.state is NodeState.PARTIAL
    assert {gap.name for gap in facts.gaps} == {stage.name for stage in stages_of([Module.SCHED])}
    assert {gap.reason for gap in facts.gaps} == {
        "this agent does not know module sched; upgrade it"
    }


def test_a_node_is_partial_for_the_probe_alone_whose_target_loses_packets() -> None:
    partial = TargetStatus(TargetState.ATTACHED, "the memory for sockets is full", is_partial=True)
    agent = AgentView(
        NodeState.READY,
        applied={"uid": TARGETS, "other": TARGETS},
        others={"uid": {target_id("b"): partial}},
    )

    concerned = node_facts("n", agent, "uid", TARGETS, DEFAULT_MODULES)
    assert (concerned.state, concerned.attached) == (NodeState.PARTIAL, 2)
    assert concerned.message == "container server: the memory for sockets is full"
    assert node_facts("n", agent, "other", TARGETS, DEFAULT_MODULES).state is NodeState.READY


NOON = 1_800_000_000.0


@pytest.mark.parametrize(
    ("state", "staleness", "expected", "message", "last_report"),
    [
        (NodeState.READY, Staleness(29, NOON, 29), NodeState.READY, "", None),
        (
            NodeState.READY,
            Staleness(31, NOON, 31),
            NodeState.STALE,
            "its agent is connected, but does not report; last report 30s ago",
            NOON,
        ),
        (
            NodeState.READY,
            Staleness(31, None),
            NodeState.STALE,
            "its agent is connected, but does not report",
            None,
        ),
        # An agent that has just come back is not blamed for the time before.
        (NodeState.READY, Staleness(1, NOON, 500), NodeState.READY, "", None),
        (
            NodeState.UNREACHABLE,
            Staleness(0, NOON, 95),
            NodeState.UNREACHABLE,
            "why; last report 1m ago",
            NOON,
        ),
        (NodeState.NO_AGENT, Staleness(), NodeState.NO_AGENT, "why", None),
    ],
)
def test_a_stale_node_is_reported_with_the_age_of_its_last_report(
    state: NodeState,
    staleness: Staleness,
    expected: NodeState,
    message: str,
    last_report: float | None,
) -> None:
    why = "" if state is NodeState.READY else "why"
    agent = AgentView(state, why, applied={"uid": TARGETS})

    facts = node_facts(
        "node-a", agent, "uid", TARGETS, DEFAULT_MODULES, staleness=staleness, patience_s=30
    )

    assert (facts.state, facts.message, facts.last_report) == (expected, message, last_report)
    assert facts.attached == (2 if expected is NodeState.READY else 0)
