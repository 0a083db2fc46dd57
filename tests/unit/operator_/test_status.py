"""The status document: what it says, how large it gets, and what is sent of it."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    Measurement,
    NodeMeasurement,
    NodeStage,
    StageMeasurement,
)
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe.domain.verdict import Verdict
from latencyprobe_operator.api.conditions import ReadyReason
from latencyprobe_operator.api.status_fields import NodeState, Phase
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.document import (
    MAX_BYTES,
    Document,
    KeptDocument,
    merge_patch,
    size_bytes,
    turning_points,
)
from latencyprobe_operator.probes.facts import NodeFacts, Problem
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome
from latencyprobe_operator.probes.status_news import differs
from tests.unit.operator_.status_facts import LATER, NOW, READY, SLOW_READER, SPEC, facts, listed
from tools.fakes.agent import measurement
from tools.fakes.api import apply_merge_patch
from tools.fakes.samples import probe_spec

NO_AGENT = NodeFacts("node-b", NodeState.NO_AGENT, "no agent runs on this node")


def condition(document: Document, name: str) -> tuple[str, str]:
    """(status, reason) of a condition."""
    (found,) = (each for each in document["conditions"] if each["type"] == name)
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("parts", "phase", "ready"),
    [
        ({}, "Running", ("True", "Measuring")),
        ({"nodes": [READY, NO_AGENT]}, "Degraded", ("True", "Measuring")),
        (
            {"nodes": [READY, NodeFacts("c", NodeState.ATTACHING)]},
            "Running",
            ("True", "Measuring"),
        ),
        ({"nodes": [NO_AGENT], "start_time": None}, "Pending", ("False", "NoAgent")),
        ({"nodes": [NO_AGENT]}, "Degraded", ("False", "NoAgent")),
        (
            {"nodes": [NodeFacts("c", NodeState.CONNECTING)], "start_time": None},
            "Pending",
            ("False", "Attaching"),
        ),
        (
            {"nodes": [NodeFacts("c", NodeState.UNREACHABLE, "refused")], "start_time": None},
            "Pending",
            ("False", "AgentUnreachable"),
        ),
        (
            {"nodes": [NodeFacts("c", NodeState.VERSION_SKEW)], "start_time": None},
            "Pending",
            ("False", "VersionSkew"),
        ),
        ({"nodes": [], "matched_pods": 0}, "Pending", ("True", "NoMatchingPods")),
        ({"nodes": [], "containers": 0}, "Pending", ("True", "NoRunningContainers")),
        (
            {"nodes": [], "problem": Problem(ReadyReason.INVALID_SELECTOR, "unable to parse")},
            "Pending",
            ("False", "InvalidSelector"),
        ),
        ({"phase": Phase.SUSPENDED}, "Suspended", ("True", "Suspended")),
        ({"phase": Phase.COMPLETED}, "Completed", ("True", "Completed")),
    ],
)
def test_phase_and_readiness_follow_the_facts(
    parts: dict[str, Any], phase: str, ready: tuple[str, str]
) -> None:
    document = status.build(facts(**parts), now=NOW)

    assert document["phase"] == phase
    assert condition(document, "Ready") == ready
    assert document["observedGeneration"] == 3
    outline = status.outline(facts(**parts), now=NOW)
    assert turning_points(outline) == turning_points(document)


@pytest.mark.parametrize(
    ("parts", "complete", "message"),
    [
        ({"start_time": None, "nodes": []}, ("False", "NotBegun"), "counts from the first target"),
        ({}, ("False", "InProgress"), "measures until 2026-01-01T00:15:00Z"),
        ({"phase": Phase.SUSPENDED}, ("False", "Suspended"), "spec.suspend is true"),
        ({"phase": Phase.COMPLETED}, ("True", "Completed"), "spec.duration is over"),
    ],
)
def test_a_bounded_run_is_complete_when_its_duration_is_over(
    parts: dict[str, Any], complete: tuple[str, str], message: str
) -> None:
    document = status.build(facts(spec=probe_spec(duration="15m"), **parts), now=NOW)

    assert condition(document, "Complete") == complete
    (found,) = (each for each in document["conditions"] if each["type"] == "Complete")
    assert message in found["message"]
    endless = status.build(facts(**parts), now=NOW)
    assert "Complete" not in [each["type"] for each in endless["conditions"]]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([READY, READY], "2 of 2 nodes measure every target"),
        ([READY, NO_AGENT], "1 of 2 nodes measure every target"),
        (
            [NodeFacts("c", NodeState.ATTACHING, attached=1), READY, NO_AGENT],
            "2 of 3 nodes measure, 1 of them every target",
        ),
        (
            [NodeFacts("c", NodeState.FAILED, attached=1)],
            "1 of 1 nodes measure, 0 of them every target",
        ),
    ],
)
def test_readiness_says_how_many_nodes_measure_and_how_many_all_of_it(
    nodes: list[NodeFacts], message: str
) -> None:
    (ready,) = (
        each
        for each in status.build(facts(nodes=nodes), now=NOW)["conditions"]
        if each["type"] == "Ready"
    )
    assert ready["message"] == message


@pytest.mark.parametrize(
    ("nodes", "covered"),
    [
        ([READY], ("True", "FullyCovered")),
        ([READY, NO_AGENT], ("False", "NodesNotCovered")),
        (
            [
                NodeFacts(
                    "a",
                    NodeState.PARTIAL,
                    gaps=(StageCoverage("rx.host", CoverageState.PARTIAL, "", ""),),
                )
            ],
            ("False", "StagesNotCovered"),
        ),
        ([], ("Unknown", "NoTargets")),
    ],
)
def test_covered_names_nodes_and_stages(nodes: list[NodeFacts], covered: tuple[str, str]) -> None:
    document = status.build(facts(nodes=nodes), now=NOW)

    assert condition(document, "Covered") == covered
    assert [node["name"] for node in document["nodes"]] == [
        node.name for node in nodes if node.state is not NodeState.READY
    ]


@pytest.mark.parametrize(
    ("cpu_percent", "within"),
    [
        (None, ("Unknown", "NotMeasured")),
        (0.7, ("True", "WithinBudget")),
        (1.3, ("False", "OverBudget")),
    ],
)
def test_overhead_is_judged_by_the_busiest_node(
    cpu_percent: float | None, within: tuple[str, str]
) -> None:
    nodes = [
        dataclasses.replace(READY, cpu_percent=cpu_percent),
        NodeFacts("b", NodeState.READY, attached=1, cpu_percent=cpu_percent and 0.1),
    ]

    assert condition(status.build(facts(nodes=nodes), now=NOW), "WithinOverhead") == within


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize("node_figures", [False, True])
def test_a_node_without_a_module_is_not_within_its_budget(
    budget: float, node_figures: bool
) -> None:
    without = dataclasses.replace(READY, cpu_percent=0.7, stopped_modules=(Module.TX, Module.RX))
    nodes = [dataclasses.replace(READY, cpu_percent=0.1), without, without]
    spec = dataclasses.replace(SPEC, node_figures=node_figures, max_cpu_percent=budget)
    document = status.build(facts(spec=spec, nodes=nodes), now=NOW)

    assert condition(document, "WithinOverhead") == ("False", "ModulesStopped")
    (found,) = (each for each in document["conditions"] if each["type"] == "WithinOverhead")
    assert found["message"] == (
        f"node {READY.name}: module tx, rx is not measured, to keep the budget (and 1 more nodes)"
    )


@pytest.mark.parametrize(
    ("outcomes", "met"),
    [
        ([ObjectiveOutcome.MET], ("True", "AllMet")),
        ([ObjectiveOutcome.MET, ObjectiveOutcome.UNKNOWN], ("Unknown", "InsufficientData")),
        ([ObjectiveOutcome.UNKNOWN, ObjectiveOutcome.MISSED], ("False", "ObjectiveMissed")),
    ],
)
def test_one_missed_objective_is_enough(
    outcomes: list[ObjectiveOutcome], met: tuple[str, str]
) -> None:
    spec = probe_spec(
        objectives=[{"name": "a", "stage": "rx.total", "percentile": "p99", "max": "5ms"}]
    )
    judgements = [Judgement(outcome, str(outcome)) for outcome in outcomes]

    document = status.build(facts(spec=spec, objectives=judgements), now=NOW)

    assert condition(document, "ObjectivesMet") == met


@pytest.mark.parametrize(("limit", "bottleneck"), [("1s", "None"), ("5ms", "SlowReader")])
def test_the_objectives_decide_the_bottleneck_of_all_pods(limit: str, bottleneck: str) -> None:
    objective = {"name": "a", "stage": "rx.total", "percentile": "p99", "max": limit}
    spec = probe_spec(objectives=[objective])
    document = status.build(facts(spec=spec, merged=SLOW_READER), now=NOW)
    assert document["summary"]["bottleneck"] == bottleneck
    outcome = "missed" if bottleneck == "SlowReader" else "met"
    assert f"{outcome}: p99 of rx.total is 10ms" in document["summary"]["message"]


@pytest.mark.parametrize(
    ("culprits", "named"),
    [
        (("pod cart/batch-0",), "the longest for pod cart/batch-0"),
        (("pod cart/batch-0", "pod cart/batch-0"), "the longest for pod cart/batch-0"),
        (("pod cart/batch-0", "pod cart/batch-1"), ""),
        ((), ""),
    ],
)
def test_the_summary_has_the_culprit_that_its_pods_agree_on(
    culprits: tuple[str, ...], named: str
) -> None:
    waited = Measurement(counters={"waitedForOthersNs": 10**9, "waitedForCgroup.7": 10**9})
    for name in ("rx.wakeup", "sched.runqueue"):
        waited += measurement(*[8_000_000] * 200, stage=name)
    late = SLOW_READER + waited
    spec = replace(SPEC, modules=(*SPEC.modules, Module.SCHED))
    pods = [listed(f"checkout-{n}", "node-a", (), late) for n in range(len(culprits))]
    pods = [
        replace(
            pod,
            report=replace(
                pod.report, verdict=Verdict(Bottleneck.NOISY_NEIGHBOUR, 90, (), "", culprit=each)
            ),
        )
        for pod, each in zip(pods, culprits, strict=True)
    ]
    document = status.build(facts(spec=spec, merged=late, pods=pods), now=NOW)
    message = document["summary"]["message"]
    assert document["summary"]["bottleneck"] == "NoisyNeighbour"
    assert "cgroup 7" not in message
    assert ("the longest for" in message) is bool(named)
    assert named in message


def test_without_objectives_there_is_no_such_condition() -> None:
    document = status.build(facts(), now=NOW)

    assert [each["type"] for each in document["conditions"]] == [
        "Ready",
        "Covered",
        "WithinOverhead",
    ]


def test_a_transition_time_moves_only_with_its_status() -> None:
    first = status.build(facts(), now=NOW)
    second = status.build(facts(nodes=[READY, NO_AGENT], previous=first, generation=4), now=LATER)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}

    assert times == {"Ready": NOW, "Covered": LATER, "WithinOverhead": NOW}
    assert {each["observedGeneration"] for each in second["conditions"]} == {4}


def test_summary_and_pods_carry_figures_and_verdict() -> None:
    pods = [listed("checkout-1", "node-a", ("server",), SLOW_READER)]
    document = status.build(facts(pods=pods, merged=SLOW_READER, omitted_pods=1), now=NOW)

    assert document["summary"]["bottleneck"] == "SlowReader"
    assert document["summary"]["p99"] == "10ms"
    assert "rx.socket: 9ms on average" in document["summary"]["message"]
    (pod,) = document["pods"]
    assert (pod["name"], pod["node"], pod["containers"]) == ("checkout-1", "node-a", ["server"])
    assert pod["verdict"]["stage"] == "rx.socket"
    assert {stage["name"]: stage["count"] for stage in pod["stages"]} == {
        "rx.stack": 200,
        "rx.socket": 200,
        "rx.total": 200,
    }
    assert document["omittedPods"] == 1


def test_nodes_that_had_trouble_are_listed_the_worst_first() -> None:
    few, many = (NodeMeasurement(counters={"softnetDropped": n}) for n in (1, 5))
    pods = [listed("checkout-1", "node-a", ("server",), SLOW_READER, of_node=few)]
    context = {"node-a": few, "node-b": NodeMeasurement(counters={"x": 0}), "node-c": many}

    document = status.build(facts(node_context=context, pods=pods, merged=SLOW_READER), now=NOW)

    assert document["nodeContext"] == [
        {"node": "node-c", "counters": {"softnetDropped": 5}, "stages": []},
        {"node": "node-a", "counters": {"softnetDropped": 1}, "stages": []},
    ]
    evidence = document["pods"][0]["verdict"]["evidence"]
    assert evidence[-1] == "during the window on its node: softnetDropped 1"
    assert "softnetDropped 6" in document["summary"]["message"]


def test_a_node_whose_threads_waited_long_had_less_trouble_than_one_that_dropped() -> None:
    waited = NodeMeasurement(counters={"cpuPressureNs": 10**12, "softnetDropped": 1})
    dropped = NodeMeasurement(counters={"softnetDropped": 2})
    context = {"node-a": waited, "node-b": dropped}

    document = status.build(facts(node_context=context), now=NOW)

    assert [node["node"] for node in document["nodeContext"]] == ["node-b", "node-a"]


def test_of_nodes_without_trouble_nothing_is_said() -> None:
    assert "nodeContext" not in status.build(facts(), now=NOW)


def test_a_nodes_stages_of_the_probes_modules_are_shown_the_costliest_of_many() -> None:
    stages = {
        NodeStage("rx.softirq", f"h{n:02}"): StageMeasurement(Histogram.of([1000 * (n + 1)]))
        for n in range(20)
    }
    context = {"node-a": NodeMeasurement(stages, {f"c{n}": n + 1 for n in range(40)})}

    (node,) = status.build(facts(node_context=context), now=NOW)["nodeContext"]

    assert [stage["detail"] for stage in node["stages"]] == [f"h{n:02}" for n in range(19, 7, -1)]
    assert len(node["counters"]) == status.MAX_CONTEXT_COUNTERS
    assert node["counters"]["c39"] == 40
    assert node["counters"]["countersOmitted"] == 40 - (status.MAX_CONTEXT_COUNTERS - 1)


def test_counts_of_a_pods_namespace_stand_apart() -> None:
    netns = Measurement(netns_counters={"TcpExtListenDrops": 2, "UdpRcvbufErrors": 0})
    many = {f"eth0:rx{n}_drops": n for n in range(100)}
    pods = [
        listed("a", "node-a", ("server",), SLOW_READER + netns),
        listed("b", "node-a", ("server",), SLOW_READER),
        listed("c", "node-a", ("server",), Measurement(netns_counters=many)),
    ]

    a, b, c = status.build(facts(pods=pods), now=NOW)["pods"]

    assert a["netnsCounters"] == {"TcpExtListenDrops": 2}
    assert "netnsCounters" not in b
    assert len(c["netnsCounters"]) == status.MAX_CONTEXT_COUNTERS


def test_the_last_figures_stay_while_inactive() -> None:
    pods = [listed("checkout-1", "node-a", ("server",), SLOW_READER)]
    context = {"node-a": NodeMeasurement(counters={"softnetDropped": 1})}
    running = status.build(
        facts(pods=pods, merged=SLOW_READER, last_report_time=NOW, node_context=context), now=NOW
    )

    rest = status.build(
        facts(
            phase=Phase.COMPLETED, previous=running, matched_pods=0, nodes=[], last_report_time=NOW
        ),
        now=LATER,
    )

    for kept in ("summary", "pods", "nodeContext", "lastReportTime", "startTime"):
        assert rest[kept] == running[kept]
    assert rest["targets"] == {"pods": 2, "containers": 2, "nodes": 1, "readyNodes": 0}


def test_a_huge_cluster_fits() -> None:
    everything = Measurement(
        {stage.name: StageMeasurement(Histogram.of([10**9] * 200)) for stage in STAGES},
        netns_counters={"n" * 60 + str(n): 10**9 for n in range(256)},
    )
    context = NodeMeasurement(
        {NodeStage(stage.name, "d" * 64): everything.stage(stage.name) for stage in STAGES},
        {"n" * 60 + str(n): 10**9 for n in range(256)},
    )
    gaps = tuple(
        StageCoverage(stage.name, CoverageState.UNAVAILABLE, "h" * 999, "r" * 999)
        for stage in STAGES
    )
    document = status.build(
        facts(
            spec=probe_spec(report={"maxPods": 100}),
            nodes=[
                NodeFacts(f"node-{n}", NodeState.PARTIAL, "m" * 9999, gaps) for n in range(1000)
            ],
            pods=[
                listed(f"pod-{n}" * 20, "node-x", tuple("c" * 63 for _ in range(20)), everything)
                for n in range(100)
            ],
            omitted_pods=9900,
            merged=everything,
            node_context={f"node-{n}": context for n in range(1000)},
        ),
        now=NOW,
    )

    assert size_bytes(document) <= MAX_BYTES
    assert document["pods"]
    assert len(document["pods"]) + document["omittedPods"] == 10_000
    assert len(document["nodes"]) + document["omittedNodes"] == 1000


def test_reports_alone_make_no_difference_and_turn_nothing() -> None:
    before = status.build(facts(last_report_time=NOW), now=NOW)
    after = status.build(facts(last_report_time=LATER, previous=before), now=LATER)

    assert not differs(before, after)
    assert turning_points(before) == turning_points(after)


documents = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), documents, max_size=3)


@given(objects, objects)
def test_a_merge_patch_leads_from_one_document_to_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    patch = merge_patch(before, after)

    assert apply_merge_patch(before, patch) == after
    assert bool(patch) == (before != after)


@given(st.dictionaries(st.sampled_from(["phase", "pods", "nodes", "nodeContext"]), documents))
def test_a_document_that_is_kept_stays_as_it_was(document: dict[str, Any]) -> None:
    kept = KeptDocument(document)

    assert kept.whole() == document
    assert kept.outline == {key: document[key] for key in document if key == "phase"}
    light = {key: document[key] for key in document if key in {"phase", "nodes"}}
    assert kept.without_pods() == light


def test_the_rows_of_a_status_are_kept_in_a_third_of_their_memory() -> None:
    busy = Measurement(
        {stage.name: StageMeasurement(Histogram.of([10**6] * 200)) for stage in STAGES}
    )
    pods = [listed(f"checkout-{n}", "node-a", ("server",), busy) for n in range(20)]
    document = json.loads(json.dumps(status.build(facts(pods=pods), now=NOW)))
    tracemalloc.start()
    try:
        copy = json.loads(json.dumps(document))
        as_objects, _ = tracemalloc.get_traced_memory()
        kept = KeptDocument(copy)
        del copy
        as_kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept.whole() == document
    assert as_kept < as_objects / 3


@pytest.mark.parametrize(
    ("budget", "cpu_percent", "within"),
    [(0, 1.3, "NoBudget"), (1, 0.7, "WithinBudget"), (1, 1.3, "OverBudget")],
)
def test_the_cost_of_a_nodes_programs_is_a_figure_of_the_node(
    budget: float, cpu_percent: float, within: str
) -> None:
    nodes = [dataclasses.replace(READY, cpu_percent=cpu_percent)]
    spec = dataclasses.replace(SPEC, node_figures=False, max_cpu_percent=budget)
    document = status.build(facts(spec=spec, nodes=nodes), now=NOW)

    assert condition(document, "WithinOverhead")[1] == within
    assert str(cpu_percent) not in json.dumps(document)


def test_without_node_figures_no_part_of_a_status_has_them() -> None:
    """The status has a filter of its own: whatever the facts hold."""
    spec = dataclasses.replace(SPEC, node_figures=False)
    context = {"node-a": NodeMeasurement(counters={"softnetDropped": 5550001})}
    pods = [listed("a", "node-a", ("server",), SLOW_READER)]
    whole = facts(spec=spec, node_context=context, pods=pods, merged=SLOW_READER)

    text = json.dumps(status.build(whole, now=NOW))

    assert "5550001" not in text
    assert "5,550,001" not in text
    shown = dataclasses.replace(whole, spec=SPEC)
    assert "5,550,001" in json.dumps(status.build(shown, now=NOW))
