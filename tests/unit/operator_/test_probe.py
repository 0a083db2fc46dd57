"""One probe's life: what it makes of its spec, its pods and its reports, and when it writes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from latencyprobe.domain.fairness import MAX_PROBES
from latencyprobe.domain.measurement import MAX_NODE_STAGES, Measurement
from latencyprobe.domain.summary import ProbeSummary
from latencyprobe_operator.agents.messages import outgoing_state
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.api.timestamps import epoch_s, timestamp
from latencyprobe_operator.kube.cluster import ApiError
from latencyprobe_operator.kube.events import EventOutcome
from latencyprobe_operator.kube.informer import PodsRefusal
from latencyprobe_operator.kube.pods import PodsChange
from latencyprobe_operator.observed_state import AgentView, ReportedProbe, ReportSource, Span
from latencyprobe_operator.probes.deltas import summarised
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.facts import ProbeFacts
from latencyprobe_operator.probes.gathering import FactsGatherer
from latencyprobe_operator.probes.probe import Probe
from latencyprobe_operator.probes.status import build
from latencyprobe_operator.probes.sums import MAX_COUNTERS
from latencyprobe_operator.probes.turns import NamespaceTurns
from tests.unit.operator_.probe_world import World, clock, report, running, take, take_deltas
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tests.unit.operator_.waiting import until
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, probe_body, probe_spec, target_id

LOOP = VirtualTimeLoop


@pytest.fixture
def world() -> World:
    """A world without pods."""
    return World()


async def ready(world: World, reason: str) -> None:
    """Wait until the condition Ready was written with this reason."""
    await until(lambda: world.condition()[1] == reason, what=lambda: world.status)


async def test_it_waits_for_pods_and_starts_when_one_appears(world: World) -> None:
    async with running(world, probe_body()):
        world.show()
        await ready(world, "NoMatchingPods")
        assert world.status["phase"] == "Pending"
        assert "startTime" not in world.status
        world.show(pod("a"))
        assert world.touched == {"node-a"}

        await ready(world, "Measuring")
        assert world.status["phase"] == "Running"
        assert world.status["targets"] == {
            "pods": 1,
            "containers": 1,
            "nodes": 1,
            "readyNodes": 1,
        }
        assert world.status["startTime"]


class Crowded(World):
    """A node whose agent takes no more than its limits."""

    def agent(self, node: str) -> AgentView:
        state = self.desired.of_node(node)
        outgoing = outgoing_state(state, generation=1, lease_s=300)
        applied = {probe.key.uid: probe.targets for probe in state}
        return AgentView(NodeState.READY, applied=applied, others=outgoing.left_out)


@pytest.mark.parametrize(
    ("name", "ready", "covered"),
    [
        ("victim", ("True", "Measuring"), ("True", "FullyCovered")),
        ("flood-z", ("False", "TargetsFailed"), ("False", "NodesNotCovered")),
    ],
)
async def test_only_a_probe_that_is_left_out_of_a_crowded_node_reports_it(
    name: str, ready: tuple[str, str], covered: tuple[str, str]
) -> None:
    world = Crowded()
    for number in range(MAX_PROBES):
        spec = probe_spec(f"flood-{number:04}", namespace="flood")
        world.desired.set_probe(spec, [pod("f")])
    namespace = "flood" if name == "flood-z" else "bank"
    async with running(world, probe_body(name, namespace=namespace)):
        world.show(pod(name), selector=f"app={name}")
        await until(lambda: world.condition() == ready, what=lambda: world.status)

        assert world.condition("Covered") == covered
        shown = [world.status["nodes"], *(c["message"] for c in world.status["conditions"])]
        assert ("the share of namespace flood is" in str(shown)) is (name == "flood-z")


class Busy(World):
    """Counts how often the agents are looked at."""

    views = 0

    def agent(self, node: str) -> AgentView:
        self.views += 1
        return super().agent(node)


async def test_a_thousand_changes_of_agents_within_a_second_are_checked_a_few_times() -> None:
    world = Busy()
    async with running(world, probe_body(interval="60s")) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        await asyncio.sleep(5)
        views = world.views
        for _ in range(1000):
            probe.poke()
            await asyncio.sleep(0.01)

        assert world.views - views <= 12


async def test_a_change_of_an_agent_after_a_calm_time_is_written_at_once(world: World) -> None:
    async with running(world, probe_body(interval="60s")) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        await asyncio.sleep(5)
        world.agent_state = NodeState.UNREACHABLE
        probe.poke()
        began = clock()
        await ready(world, "AgentUnreachable")

        assert clock() - began < 0.5


async def test_figures_are_written_once_an_interval(world: World) -> None:
    async with running(world, probe_body(interval="2s")) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        writes = len(world.writes)
        began = clock()
        for _ in range(9):
            take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 50)}))
            await asyncio.sleep(0.5)

        assert 1 <= len(world.writes) - writes <= (clock() - began) / 2 + 1
        (listed,) = world.status["pods"]
        assert listed["name"] == "a"
        assert world.status["summary"]["p99"] == "1ms"


async def test_nothing_is_written_while_nothing_changes(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        take(probe, "node-a", report({target_id("a"): Measurement()}))
        await asyncio.sleep(1.5)
        writes = len(world.writes)
        for _ in range(4):
            take(probe, "node-a", report({target_id("a"): Measurement()}))
            await asyncio.sleep(0.5)

        assert len(world.writes) == writes


async def test_the_listed_pods_are_sorted_by_their_listed_figures(world: World) -> None:
    async with running(world, probe_body(interval="10s", window="20s")) as probe:
        world.show(pod("a"), pod("b"))
        await ready(world, "Measuring")
        take(probe, "node-a", report({target_id("a"): measurement(*[9 * 10**6] * 200)}))
        await asyncio.sleep(10)
        figures = {
            target_id("a"): measurement(*[10**6] * 10),
            target_id("b"): measurement(*[2 * 10**6] * 200),
        }
        take(probe, "node-a", report(figures))
        await until(lambda: len(world.status.get("pods", ())) == 2, what=lambda: world.status)
        for _ in range(3):
            await asyncio.sleep(10)
            told = [each["stages"][-1]["p99Ns"] for each in world.status["pods"] if each["stages"]]
            assert told == sorted(told, reverse=True)


async def test_turning_points_are_a_second_apart(world: World) -> None:
    async with running(world, probe_body(interval="10m")) as probe:
        world.show(pod("a"))
        for index in range(24):
            world.agent_state = (NodeState.READY, NodeState.UNREACHABLE)[index % 2]
            probe.poke()
            await asyncio.sleep(0.15)

        assert len(world.writes) >= 2
        gaps = [b - a for a, b in zip(world.writes, world.writes[1:], strict=False)]
        assert min(gaps) >= 0.99


async def test_a_corrupt_report_is_left_out_alone(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"), pod("b"))
        corrupt = report(
            {target_id("a"): measurement(1000), target_id("b"): measurement(*[2000] * 100)}
        )
        corrupt.targets[0].stages[0].histogram.positions.append(9999)
        take_deltas(probe, "node-a", corrupt)
        await until(
            lambda: any(each["stages"] for each in world.status.get("pods", ())),
            what=lambda: world.status,
        )

        stages = {each["name"]: len(each["stages"]) for each in world.status["pods"]}
        assert stages == {"a": 0, "b": 1}


async def test_containers_of_a_pod_report_one_network_namespace(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a", containers=("old", "new")))
        for _ in range(2):
            figures = {
                target_id("a", "old"): Measurement(netns_counters={"TcpExtListenDrops": 3}),
                # Began later, and so saw less of the same.
                target_id("a", "new"): Measurement(netns_counters={"TcpExtListenDrops": 1}),
            }
            take(probe, "node-a", report(figures))
        await until(
            lambda: any("netnsCounters" in each for each in world.status.get("pods", ())),
            what=lambda: world.status,
        )

        assert world.status["pods"][0]["netnsCounters"] == {"TcpExtListenDrops": 3 + 3}


async def test_a_nodes_troubles_add_up_over_the_reports_of_each_node(world: World) -> None:
    async with running(world, probe_body(interval="1s"), node_figures=True) as probe:
        world.show(pod("a"), pod("b", node="node-b"), pod("c", node="node-c"))
        for node, name in (("node-a", "a"), ("node-b", "b"), ("node-b", "b"), ("node-c", "c")):
            message = report({target_id(name): Measurement()})
            if node != "node-c":  # an agent from before there was such a thing
                message.node.counters["softnetDropped"] = 2
            take(probe, node, message)
        await until(lambda: "nodeContext" in world.status, what=lambda: world.status)

        told = {each["node"]: each["counters"] for each in world.status["nodeContext"]}
        assert told == {"node-b": {"softnetDropped": 4}, "node-a": {"softnetDropped": 2}}


async def test_a_node_that_stops_reporting_is_shown_with_the_age_of_its_last_report(
    world: World,
) -> None:
    async with running(world, probe_body(), wall_clock=clock) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        take(probe, "node-a", report({target_id("a"): measurement(1000)}))
        for _ in range(10):
            await asyncio.sleep(10)
            take(probe, "node-b", report({target_id("b"): measurement(1000)}))
        await until(lambda: world.status.get("nodes"), what=lambda: world.status)

        (node,) = world.status["nodes"]
        assert (node["name"], node["state"]) == ("node-a", "Stale")
        assert node["message"].endswith("last report 1m ago")
        assert node["lastReportTime"] == "1970-01-01T00:00:00Z"
        assert world.status["phase"] == "Degraded"

        writes = len(world.writes)
        take(probe, "node-a", report({target_id("a"): measurement(1000)}))
        await until(lambda: world.status["phase"] == "Running", what=lambda: world.status)
        assert world.status["nodes"] == []
        assert len(world.writes) > writes


async def test_nodes_that_stay_stale_cost_few_writes(world: World) -> None:
    async with running(world, probe_body(), wall_clock=clock) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(1000)}))
        await asyncio.sleep(600)
        writes = len(world.writes)
        await asyncio.sleep(3000)

        assert (world.status["phase"], world.condition()) == ("Degraded", ("False", "AgentSilent"))
        assert len(world.writes) - writes <= 6


async def test_a_corrupt_field_of_a_node_costs_only_that(world: World) -> None:
    async with running(world, probe_body(interval="1s"), node_figures=True) as probe:
        world.show(pod("a"))
        message = report({target_id("a"): measurement(*[10**6] * 100)})
        message.node.stages.add(detail="eth0")
        take(probe, "node-a", message)
        await until(lambda: "p99" in world.status.get("summary", {}), what=lambda: world.status)

        assert "nodeContext" not in world.status


async def test_a_part_of_a_report_adds_figures_and_counts_as_a_report_with_the_last(
    world: World,
) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"), pod("b"))
        part = report({target_id("a"): measurement(*[1000] * 200)})
        part.more = True
        take_deltas(probe, "node-a", part)
        counted = [probe._intake.reported]
        take_deltas(probe, "node-a", report({target_id("b"): measurement(*[1000] * 300)}))
        counted.append(probe._intake.reported)
        assert counted == [False, True]
        await until(lambda: "p99" in world.status.get("summary", {}), what=lambda: world.status)

        counts = {each["name"]: each["stages"][0]["count"] for each in world.status["pods"]}
        assert sorted(counts.values()) == [200, 300]


async def test_reports_of_an_older_agent_are_judged_once_in_half_an_interval(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[float] = []

    def count(given: ReportedProbe, *rest: Any, **options: Any) -> ReportedProbe:
        judged.append(clock())
        return summarised(given, *rest, **options)

    monkeypatch.setattr("latencyprobe_operator.probes.intake.summarised", count)
    async with running(world, probe_body(interval="10s")) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        begin = clock()
        for _ in range(11):
            take_deltas(probe, "node-a", report({target_id("a"): measurement(1000)}))
            await asyncio.sleep(0.5)
        assert judged == pytest.approx([begin, begin + 5], abs=0.1)
        take_deltas(probe, "node-b", report({target_id("b"): measurement(1000)}))
        assert len(judged) == 3, "another node's"
        for _ in range(5):
            await asyncio.sleep(10)
            take_deltas(probe, "node-a", report({target_id("a"): measurement(1000)}))
        assert len(judged) == 8, "an agent in order"
        assert set(probe._intake._judged) == {"node-a"}


async def test_an_early_report_of_an_older_agent_is_added_to_the_next_one(world: World) -> None:
    quiet = report({target_id("a"): measurement(*[1000] * 200)})
    failing = report(
        {
            target_id("a"): Measurement(counters={"retransmits": 7}),
            target_id("b"): Measurement(counters={"retransmits": 9}),
        }
    )

    def failures() -> dict[str, int]:
        rows = world.status.get("pods", ())
        return {row["name"]: row.get("counters", {}).get("retransmits", 0) for row in rows}

    async with running(world, probe_body(interval="10s")) as probe:
        world.show(pod("a"), pod("b"))
        take_deltas(probe, "node-a", quiet)
        await asyncio.sleep(0.1)
        take_deltas(probe, "node-a", failing)
        await asyncio.sleep(9.9)
        take_deltas(probe, "node-a", quiet)
        await until(lambda: failures() == {"a": 7, "b": 9}, what=failures)

        take_deltas(probe, "node-a", failing)
        await asyncio.sleep(60)
        take_deltas(probe, "node-a", quiet)
        await until(lambda: failures() == {"a": 0}, what=failures)


async def test_parts_without_an_end_take_no_more_memory_than_the_targets_and_a_few_stages(
    world: World,
) -> None:
    async with running(world, probe_body(), node_figures=True) as probe:
        world.show(pod("a"), pod("b"))
        for number in range(50):
            part = report({target_id("a"): measurement(1000), target_id("b"): measurement(1000)})
            part.more = True
            for each in range(100):
                stage = part.node.stages.add(name="irq.hard", detail=f"{number}-{each}")
                stage.sampling_ratio, stage.lost = 1, 1
                part.node.counters[f"eth{number}-{each}:rx_dropped"] = 1
            take_deltas(probe, "node-a", part)

        (kept,) = probe._intake._parts.values()
        assert sorted(each.id for each in kept.targets) == [target_id("a"), target_id("b")]
        assert len(kept.node.stages) <= MAX_NODE_STAGES
        assert len(kept.node.counters) <= MAX_COUNTERS


async def test_reports_of_ever_new_counters_do_not_end_a_probe(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        for number in range(4):
            counters = {f"drops.R{number}-{each}": number + 1 for each in range(250)}
            take(probe, "node-a", report({target_id("a"): Measurement(counters=counters)}))
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await until(lambda: "p99" in world.status.get("summary", {}), what=lambda: world.status)

        (listed,) = world.status["pods"]
        assert listed["counters"]["drops.R3-249"] == 4


async def test_a_node_cannot_report_on_another_nodes_pods(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        take(probe, "node-a", report({target_id("a"): measurement(*[1000] * 200)}))
        take_deltas(probe, "node-b", report({target_id("a"): measurement(*[10**9] * 100_000)}))
        await until(lambda: "p99" in world.status.get("summary", {}), what=lambda: world.status)

        assert world.status["summary"]["p99"] == "1us"


async def test_a_report_on_a_pod_that_is_gone_is_left_out(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        take_deltas(probe, "node-a", report({target_id("gone"): measurement(*[1000] * 200)}))
        await until(lambda: world.status.get("lastReportTime"), what=lambda: world.status)

        assert "p99" not in world.status["summary"]


async def test_the_api_server_away_delays_the_status_and_nothing_else(world: World) -> None:
    world.failures = [OSError("refused"), ApiError(503, "", "etcd"), TimeoutError()]
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(*[1000] * 200)}))
        assert world.desired.of_node("node-a")

        await until(lambda: world.status.get("summary", {}).get("p99"), what=lambda: world.status)
        assert (
            world.metrics.registry.get_sample_value(
                "latencyprobe_operator_status_write_failures_total"
            )
            == 3
        )


async def test_suspend_detaches_keeps_the_figures_and_resumes(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await until(lambda: world.status.get("pods"), what=lambda: world.status)
        probe.update(probe_body(interval="1s", suspend=True, generation=2))
        assert not world.desired.of_node("node-a")
        await ready(world, "Suspended")
        assert world.status["summary"]["p99"] == "1ms"
        assert world.status["targets"]["pods"] == 1
        probe.update(probe_body(interval="1s", generation=3))
        world.show(pod("a"))
        await ready(world, "Measuring")
        assert world.desired.of_node("node-a")


async def test_after_its_duration_it_is_completed_and_stays_so(world: World) -> None:
    now = [1_000_000.0]
    body = probe_body(interval="1s", duration="2s")
    async with running(world, body, steady_clock=lambda: now[0]):
        world.show(pod("a"))
        await ready(world, "Measuring")
        now[0] += 2
        await ready(world, "Completed")
        assert not world.desired.of_node("node-a")
    begun = world.status["startTime"]

    restarted = probe_body(interval="1s", duration="2s")
    async with running(world, {**restarted, "status": world.status}, steady_clock=lambda: now[0]):
        await asyncio.sleep(0.3)
        assert world.condition() == ("True", "Completed")
        assert world.status["startTime"] == begun
        assert not world.desired.of_node("node-a")


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_a_wall_clock_that_is_set_neither_ends_nor_stretches_a_probe(
    world: World, jump_s: float
) -> None:
    wall, steady = [1_000_000.0], [1_000_000.0]
    clocks = {"wall_clock": lambda: wall[0], "steady_clock": lambda: steady[0]}
    async with running(world, probe_body(interval="1s", duration="1h"), **clocks) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        wall[0] += jump_s
        probe.poke()
        await asyncio.sleep(5)
        assert world.condition() == ("True", "Measuring")
        steady[0] += 3600
        probe.poke()
        await ready(world, "Completed")


@pytest.mark.parametrize("jump_s", [-86_400, 0, 86_400])
async def test_a_clock_that_is_set_between_two_operators_neither_ends_nor_stretches_a_probe(
    world: World, jump_s: float
) -> None:
    now = [1_000_000.0]
    body = probe_body(interval="1s", duration="1h")
    async with running(world, body, steady_clock=lambda: now[0]) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        now[0] += 1000
        probe.poke()
        await until(lambda: world.status.get("measuredSeconds") == 1000, what=lambda: world.status)
    now[0] += 20 + jump_s

    def has_measured(world: World, seconds: int) -> bool:
        return bool(world.status["measuredSeconds"] >= seconds)

    # Twice: the one after that has the same clock again.
    for passed_s in (1000, 2000):
        found = {**body, "status": world.status}
        async with running(world, found, steady_clock=lambda: now[0]) as probe:
            world.show(pod("a"))
            now[0] += 1000
            probe.poke()
            await until(
                partial(has_measured, world, passed_s + 1000),
                what=lambda: world.status,
            )
            assert world.status["measuredSeconds"] <= passed_s + 1320
            assert world.condition() == ("True", "Measuring")
    async with running(
        world, {**body, "status": world.status}, steady_clock=lambda: now[0]
    ) as probe:
        world.show(pod("a"))
        now[0] += 601
        probe.poke()
        await ready(world, "Completed")
        assert world.status["measuredSeconds"] == 3600


@pytest.mark.parametrize(("interval", "measured_s"), [("5m", 1200), ("10s", 1075)])
async def test_a_failover_takes_no_time_from_a_probe_whose_status_is_written_seldom(
    world: World, interval: str, measured_s: int
) -> None:
    begin, age_s = 1_000_000.0, 200
    world.status = {"startTime": timestamp(begin), "measuredSeconds": 1000, "phase": "Running"}
    async with running(
        world,
        {**probe_body(interval=interval, duration="1h"), "status": world.status},
        steady_clock=lambda: begin + 1000 + age_s,
        lease_s=15,
    ):
        world.show(pod("a"))
        await until(
            lambda: world.status["measuredSeconds"] == measured_s,
            what=lambda: world.status,
        )
        assert world.status["startTime"] == timestamp(begin + 1200 - measured_s)


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_a_completed_probe_stays_completed_with_any_clock_of_the_next_operator(
    world: World, jump_s: float
) -> None:
    now = [1_000_000.0]
    body = probe_body(interval="1s", duration="2s")
    async with running(world, body, steady_clock=lambda: now[0]):
        world.show(pod("a"))
        await ready(world, "Measuring")
        now[0] += 2
        await ready(world, "Completed")
    now[0] += jump_s
    async with running(world, {**body, "status": world.status}, steady_clock=lambda: now[0]):
        await asyncio.sleep(5)
        assert world.condition() == ("True", "Completed")
        assert not world.desired.of_node("node-a")


async def test_the_time_so_far_is_written_once_a_minute_and_with_a_duration_alone(
    world: World,
) -> None:
    def loop_clock() -> float:
        return 1_000_000.0 + clock()

    async with running(world, probe_body(duration="1h"), steady_clock=loop_clock) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        await asyncio.sleep(600)
        assert 530 <= world.status["measuredSeconds"] <= 600
        assert len(world.writes) <= 12
        probe.update(probe_body(duration="1h", suspend=True, generation=2))
        await ready(world, "Suspended")
        assert "measuredSeconds" not in world.status
        probe.update(probe_body(generation=3))
        await asyncio.sleep(120)
        assert world.status["observedGeneration"] == 3
        assert "measuredSeconds" not in world.status


async def test_a_longer_duration_goes_on(world: World) -> None:
    now = [1_000_000.0]
    async with running(world, probe_body(duration="2s"), steady_clock=lambda: now[0]) as probe:
        world.show(pod("a"))
        await ready(world, "Measuring")
        now[0] += 3
        probe.poke()
        await ready(world, "Completed")
        probe.update(probe_body(duration="1h", generation=2))
        world.show(pod("a"))
        await ready(world, "Measuring")


async def test_an_invalid_selector_is_reported_and_an_edit_mends_it(world: World) -> None:
    async with running(world, probe_body()) as probe:
        pods = world.sets["app=checkout"]
        pods.refusal = PodsRefusal(invalid=True, message="unable to parse requirement")
        pods.notify(PodsChange())
        await ready(world, "InvalidSelector")
        (condition, *_) = world.status["conditions"]
        assert condition["message"] == "unable to parse requirement"
        probe.update(probe_body(selector={}, generation=2))
        world.show(pod("a"), selector="")
        await ready(world, "Measuring")


async def test_a_spec_that_cannot_be_read_is_reported(world: World) -> None:
    async with running(world, probe_body(modules=["dns"])):
        await ready(world, "InvalidSpec")
        (condition, *_) = world.status["conditions"]
        assert "unknown module 'dns'" in condition["message"]


async def test_another_selector_keeps_the_old_pods_until_the_new_are_known(world: World) -> None:
    async with running(world, probe_body()) as probe:
        world.show(pod("a"))
        probe.update(probe_body(selector={"matchLabels": {"app": "cart"}}, generation=2))
        assert world.desired.of_node("node-a")
        world.show(pod("b", node="node-b"), selector="app=cart")
        assert not world.desired.of_node("node-a")
        assert world.desired.of_node("node-b")


async def test_an_edit_of_the_measured_traffic_forgets_the_old_figures(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await until(lambda: world.status.get("summary", {}).get("p99"), what=lambda: world.status)
        probe.update(probe_body(interval="1s", filter={"ports": [443]}, generation=2))
        await until(lambda: world.status.get("observedGeneration") == 2, what=lambda: world.status)
        assert "p99" not in world.status["summary"]


async def test_a_restarted_operator_leaves_the_status_until_agents_report(world: World) -> None:
    world.status = {
        "observedGeneration": 1,
        "phase": "Running",
        "startTime": "2026-01-01T00:00:00Z",
        "summary": {"p99": "1ms"},
    }
    world.agent_state = NodeState.CONNECTING
    async with running(world, {**probe_body(interval="1s"), "status": world.status}) as probe:
        world.show(pod("a"))
        await asyncio.sleep(0.5)
        assert world.writes == []
        world.agent_state = NodeState.READY
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await until(lambda: world.writes, what=lambda: world.status)
        assert world.status["phase"] == "Running"
        assert world.status["startTime"] == "2026-01-01T00:00:00Z"


class OneSilentNode(World):
    """The agent of one node does not report. `silent_state` is its state."""

    silent_state = NodeState.READY

    def agent(self, node: str) -> AgentView:
        view = super().agent(node)
        return replace(view, state=self.silent_state) if node == "silent" else view


@pytest.mark.parametrize(
    ("state", "stands"), [(NodeState.READY, True), (NodeState.UNREACHABLE, False)]
)
async def test_a_node_that_does_not_report_to_a_new_operator_is_waited_for_in_bounds(
    state: NodeState, stands: bool
) -> None:
    world = OneSilentNode()
    world.silent_state = state
    world.status = {"observedGeneration": 1, "phase": "Running", "startTime": timestamp(0)}
    async with running(world, {**probe_body(interval="10s"), "status": world.status}) as probe:
        world.show(pod("a"), pod("b", node="silent"))
        await asyncio.sleep(1)
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await asyncio.sleep(5)
        assert bool(world.writes) is not stands
        await asyncio.sleep(10)
        assert [row["name"] for row in world.status["pods"]] == ["a"]


EARLIER: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Running",
    "startTime": timestamp(0),
    "summary": {"p99": "1ms"},
}


async def test_the_status_stands_while_agents_are_yet_to_connect_and_attach(world: World) -> None:
    world.status, world.agent_state = EARLIER, NodeState.CONNECTING
    async with running(world, {**probe_body(interval="1s"), "status": EARLIER}) as probe:
        world.show(pod("a"))
        await asyncio.sleep(15)
        for state in (NodeState.ATTACHING, NodeState.READY):
            world.agent_state = state
            probe.poke()
            await asyncio.sleep(4)
            assert world.writes == []
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        await until(lambda: world.writes, what=lambda: world.status)
        assert (world.status["phase"], world.status["startTime"]) == ("Running", timestamp(0))


@pytest.mark.parametrize("state", [NodeState.CONNECTING, NodeState.ATTACHING])
async def test_an_agent_that_never_attaches_is_waited_for_in_bounds(
    world: World, state: NodeState
) -> None:
    world.status, world.agent_state = EARLIER, state
    async with running(world, {**probe_body(interval="10s"), "status": EARLIER}):
        world.show(pod("a"))
        await asyncio.sleep(119)
        assert world.writes == []
        await asyncio.sleep(3)
        assert world.writes


async def test_a_spec_that_is_edited_while_agents_connect_is_answered_at_once(world: World) -> None:
    world.status, world.agent_state = EARLIER, NodeState.CONNECTING
    async with running(world, {**probe_body(interval="10s"), "status": EARLIER}) as probe:
        world.show(pod("a"))
        await asyncio.sleep(5)
        probe.update(probe_body(interval="10s", modules=["rx", "unknown"], generation=2))
        await asyncio.sleep(2)
        assert world.status["observedGeneration"] == 2


async def test_a_node_that_has_reported_is_not_waited_for_when_it_attaches_another_pod() -> None:
    world = OneSilentNode()
    world.status = EARLIER
    async with running(world, {**probe_body(interval="10s"), "status": EARLIER}) as probe:
        world.show(pod("a"), pod("b", node="silent"))
        take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}))
        world.agent_state = NodeState.ATTACHING
        await asyncio.sleep(14)
        assert world.writes == []
        await asyncio.sleep(2)
        assert world.writes


@pytest.mark.parametrize(
    ("probe_age_s", "pod_age_s", "report_age_s", "of_first_state", "unobserved_s"),
    [
        (3600, 3600, 0, True, 40),
        (3600, 35, 0, True, 15),
        (45, 3600, 0, True, 25),
        (3600, 3600, 0, False, None),
        # It was sent again.
        (45, 3600, 9, True, 16),
        (28, 28, 8, True, None),
        # The clocks of its node.
        (45, 3600, -86400, True, 25),
        (45, 3600, 86400, True, None),
    ],
)
async def test_a_new_operator_shows_the_time_before_the_restart_of_an_agent_as_unobserved(
    world: World,
    *,
    probe_age_s: int,
    pod_age_s: int,
    report_age_s: int,
    of_first_state: bool,
    unobserved_s: int | None,
) -> None:
    now = epoch_s("2026-01-01T02:00:00Z")
    earlier = {**EARLIER, "startTime": timestamp(now - probe_age_s)}
    world.status = earlier
    summary = ProbeSummary(verdicts={"None": 1}, kept_ns=20 * 10**9, of_first_state=of_first_state)
    reported = ReportedProbe(
        probe_uid="uid-checkout",
        summary=summary,
        span=Span(now - report_age_s - 10, now - report_age_s),
        source=ReportSource("second", 1),
    )
    body = {**probe_body(interval="10s"), "status": earlier}
    async with running(
        world, body, wall_clock=lambda: now, steady_clock=lambda: now + clock()
    ) as probe:
        world.show(replace(pod("a"), started=int(now) - pod_age_s))
        probe.take_report("node-a", reported)
        await until(lambda: world.writes, what=lambda: world.status)

    assert world.status["summary"].get("unobservedSeconds") == unobserved_s
    if unobserved_s:
        (node,) = world.status["nodes"]
        assert f"{unobserved_s}s of the window were not observed: the agent" in node["message"]


async def test_a_probe_that_an_operator_has_changed_misses_nothing_of_the_time_before(
    world: World,
) -> None:
    now = epoch_s("2026-01-01T02:00:00Z")
    world.status = earlier = {**EARLIER, "startTime": timestamp(now - 3600)}
    body = {**probe_body(interval="10s"), "status": earlier}
    async with running(
        world, body, wall_clock=lambda: now, steady_clock=lambda: now + clock()
    ) as probe:
        world.show(pod("a"))
        await asyncio.sleep(30)
        probe.update(probe_body(interval="10s", generation=2, modules=["rx"]))
        await asyncio.sleep(30)
        summary = ProbeSummary(verdicts={"None": 1}, kept_ns=10**10, of_first_state=True)
        span, source = Span(now + 50, now + 60), ReportSource("second", 1)
        probe.take_report(
            "node-a",
            ReportedProbe(probe_uid="uid-checkout", summary=summary, span=span, source=source),
        )
        await until(
            lambda: "unobservedSeconds" in world.status["summary"], what=lambda: world.status
        )
        assert world.status["summary"]["unobservedSeconds"] == 20


async def test_agents_have_the_time_to_report_from_when_they_are_connected_to(
    world: World,
) -> None:
    world.status = EARLIER
    async with running(
        world, {**probe_body(interval="1s"), "status": EARLIER}, waits_for_agents=True
    ) as probe:
        await asyncio.sleep(20)
        world.show(pod("a"))
        probe.expect_reports()
        await asyncio.sleep(5)
        assert world.writes == []
        await asyncio.sleep(2)
        assert world.condition() == ("True", "Measuring")


async def test_a_status_that_does_not_stand_is_written_before_agents_are_connected_to(
    world: World,
) -> None:
    async with running(world, probe_body(), waits_for_agents=True) as probe:
        world.show()
        await ready(world, "NoMatchingPods")
        probe.expect_reports()
        world.show(pod("a"))
        await ready(world, "Measuring")


async def test_the_sign_of_life_is_written_while_the_wall_clock_is_set_back(world: World) -> None:
    ahead_s = [7200.0]
    async with running(
        world, probe_body(interval="10s"), wall_clock=lambda: clock() + ahead_s[0]
    ) as probe:
        world.show(pod("a"))
        for interval in range(16):
            if interval == 8:
                ahead_s[0] -= 3600
                world.writes.clear()
            take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * 200)}), fresh=True)
            await asyncio.sleep(10)
        assert world.writes
        assert epoch_s(world.status["lastReportTime"]) < clock() + ahead_s[0]


async def test_leaving_takes_it_out_of_every_state(world: World) -> None:
    async with running(world, probe_body()) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        world.touched.clear()
        probe.leave()

        assert world.touched == {"node-a", "node-b"}
        assert not world.desired.of_node("node-a")
        assert probe.stopped.is_set()
        assert world.sets["app=checkout"].listeners == []


async def test_an_objective_that_is_missed_is_a_condition(world: World) -> None:
    objective = {
        "name": "reads",
        "stage": "rx.total",
        "percentile": "p99",
        "max": "1ms",
        "for": "0s",
    }
    async with running(world, probe_body(interval="1s", objectives=[objective])) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(*[9 * 10**6] * 200)}))

        await until(
            lambda: world.condition("ObjectivesMet") == ("False", "ObjectiveMissed"),
            what=lambda: world.status,
        )


async def test_an_objective_stays_missed_under_a_new_operator(world: World) -> None:
    objective = {
        "name": "reads",
        "stage": "rx.total",
        "percentile": "p99",
        "max": "1ms",
        "for": "30s",
    }
    body, slow = probe_body(interval="1s", objectives=[objective]), measurement(*[9 * 10**6] * 200)
    missed, events = ("False", "ObjectiveMissed"), HungEvents()
    async with running(world, body, events=events) as probe:
        world.show(pod("a"))
        for _ in range(40):
            take(probe, "node-a", report({target_id("a"): slow}))
            await asyncio.sleep(1)
        assert world.condition("ObjectivesMet") == missed
        assert len(events.bodies) == 1
    async with running(world, {**body, "status": world.status}, events=events) as probe:
        world.show(pod("a"))
        # Other figures make news of the status.
        for _ in range(10):
            take(probe, "node-a", report({target_id("a"): slow + slow}))
            await asyncio.sleep(1)
            assert world.condition("ObjectivesMet") == missed
        assert len(events.bodies) == 1


async def test_the_time_of_an_exceeded_objective_goes_on_under_a_new_operator(
    world: World,
) -> None:
    objective = {
        "name": "reads",
        "stage": "rx.total",
        "percentile": "p99",
        "max": "1ms",
        "for": "150s",
    }
    body, slow = probe_body(interval="1s", objectives=[objective]), measurement(*[9 * 10**6] * 200)

    async def exceed(probe: Probe, seconds: int) -> None:
        world.show(pod("a"))
        for _ in range(seconds):
            take(probe, "node-a", report({target_id("a"): slow}), fresh=True)
            await asyncio.sleep(1)

    async with running(world, body, wall_clock=clock) as probe:
        await exceed(probe, 100)
        assert world.condition("ObjectivesMet") == ("True", "AllMet")
        assert len(world.writes) <= 4, "a longer time is no news"
    body["status"] = world.status
    async with running(world, body, wall_clock=clock) as probe:
        await exceed(probe, 40)
        assert world.condition("ObjectivesMet") == ("True", "AllMet")
        await exceed(probe, 60)
        assert world.condition("ObjectivesMet") == ("False", "ObjectiveMissed")


def test_timestamps_are_the_apis() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"
    assert epoch_s("1970-01-01T00:01:00Z") == 60


HIDDEN = "5550001"


async def test_figures_of_the_node_without_permission_are_dropped_on_arrival(world: World) -> None:
    body = probe_body(interval="1s", modules=["rx", "irq"], overhead={"maxCPUPercent": 0})
    async with running(world, body) as probe:
        world.show(pod("a"), pod("host", host_network=True))
        figures = {
            target_id("a"): Measurement(netns_counters={"TcpExtListenDrops": 3}),
            target_id("host"): Measurement(netns_counters={"TcpExtListenDrops": int(HIDDEN)}),
        }
        message = report(figures)
        message.node.counters["softnetDropped"] = int(HIDDEN)
        message.node.stages.add(name="irq.hard", detail=HIDDEN, sampling_ratio=1)
        take(probe, "node-a", message)
        await until(lambda: "lastReportTime" in world.status, what=lambda: world.status)

        assert HIDDEN not in json.dumps(world.status)
        named = {each["name"]: each.get("netnsCounters") for each in world.status["pods"]}
        assert named == {"a": {"TcpExtListenDrops": 3}, "host": None}
        assert world.condition("Covered") == ("False", "NodeFiguresNotAllowed")
        assert world.status["nodes"] == []
        assert " % of one core" not in json.dumps(world.status["conditions"])
        (asked,) = world.desired.of_node("node-a")
        assert asked.modules == ("rx",)


async def test_a_probe_of_interrupts_alone_is_refused_where_they_are_not_allowed(
    world: World,
) -> None:
    body = probe_body(modules=["irq"])
    async with running(world, body):
        await ready(world, "NodeFiguresNotAllowed")
        assert "add shop to operator.nodeFiguresNamespaces" in json.dumps(world.status)
    async with running(world, body, node_figures=True):
        world.show(pod("a"))
        await ready(world, "Measuring")


async def test_figures_of_nodes_go_when_the_administrator_withdraws_them(world: World) -> None:
    body = probe_body(suspend=True)
    body["status"] = {"nodeContext": [{"node": "node-a"}], "omittedPods": 7}
    world.status = dict(body["status"])
    async with running(world, body):
        await ready(world, "Suspended")
        assert "nodeContext" not in world.status
        assert world.status["omittedPods"] == 7


async def test_an_older_agents_figures_are_of_one_interval_and_its_node_says_so(
    world: World,
) -> None:
    async with running(world, probe_body()) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        for durations in ([10**6] * 200, [2000] * 300):
            take_deltas(probe, "node-a", report({target_id("a"): measurement(*durations)}))
            take(probe, "node-b", report({target_id("b"): measurement(*[2000] * 200)}))
            await asyncio.sleep(10)

        counts = {each["name"]: each["stages"][0]["count"] for each in world.status["pods"]}
        assert counts == {"a": 300, "b": 400}
        (node,) = world.status["nodes"]
        assert (node["name"], node["state"]) == ("node-a", "Partial")
        assert node["message"] == (
            "agent of unknown version keeps no window: its figures cover one interval of 10 s; "
            "upgrade it"
        )
        assert world.status["targets"]["readyNodes"] == 2
        assert world.condition("Covered") == ("True", "FullyCovered")


async def test_the_last_figures_are_written_though_they_were_no_news(world: World) -> None:
    now = [1_000_000.0]
    body = probe_body(interval="1s", duration="1h")
    async with running(world, body, steady_clock=lambda: now[0]) as probe:
        world.show(pod("a"))
        for samples in (200, 10):
            take(probe, "node-a", report({target_id("a"): measurement(*[10**6] * samples)}))
            await asyncio.sleep(2)
        (row,) = world.status["pods"]
        assert row["stages"][0]["count"] == 200
        now[0] += 3600
        probe.poke()
        await ready(world, "Completed")
        (row,) = world.status["pods"]
        assert row["stages"][0]["count"] == 210


async def test_a_pod_that_returns_to_a_node_leaves_no_unobserved_time(world: World) -> None:
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(pod("a"))
        take(probe, "node-a", report({target_id("a"): measurement(1000)}))
        await asyncio.sleep(2)
        world.show()
        await asyncio.sleep(30)
        world.show(pod("a"))
        late = report({target_id("a"): measurement(1000)})
        take(probe, "node-a", late, late_s=20)
        await asyncio.sleep(2)
        assert world.status["nodes"] == []
        await asyncio.sleep(30)
        take(probe, "node-a", late, late_s=40)
        await asyncio.sleep(2)
        assert world.status["summary"]["unobservedSeconds"] == 20


async def test_the_statuses_of_many_probes_are_built_in_turns_of_their_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that reports and other tasks wait for one of them at most."""
    built: list[str] = []
    of_this_turn: set[str] = set()

    def note(facts: ProbeFacts, *, now: str) -> Document:
        assert facts.spec
        if not of_this_turn:
            asyncio.get_running_loop().call_soon(of_this_turn.clear)
        of_this_turn.add(facts.spec.key.name)
        assert len(of_this_turn) == 1
        built.append(facts.spec.key.name)
        return build(facts, now=now)

    monkeypatch.setattr("latencyprobe_operator.probes.probe.build", note)
    names = [f"probe-{number}" for number in range(20)]
    building = NamespaceTurns()
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(running(world, probe_body(name), building=building))
        for selector in list(world.sets):
            world.show(selector=selector)
        await asyncio.sleep(20)

    assert set(built) == set(names)


async def test_reports_between_two_statuses_of_a_running_probe_are_no_reason_for_a_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[float] = []

    def note(gatherer: FactsGatherer, facts: ProbeFacts, *args: Any, **times: Any) -> ProbeFacts:
        checks.append(asyncio.get_running_loop().time())
        return with_nodes(gatherer, facts, *args, **times)

    with_nodes = FactsGatherer.with_nodes
    monkeypatch.setattr(FactsGatherer, "with_nodes", note)
    async with running(world, probe_body(interval="10s")) as probe:
        world.show(pod("a"), pod("b", node="node-b"))
        take(probe, "node-a", report({target_id("a"): measurement(1000)}))
        take(probe, "node-b", report({target_id("b"): measurement(1000)}))
        await ready(world, "Measuring")
        await asyncio.sleep(1)
        checks.clear()
        for _ in range(5):
            await asyncio.sleep(3)
            take(probe, "node-a", report({target_id("a"): measurement(1000)}))
            await asyncio.sleep(7)
            take(probe, "node-b", report({target_id("b"): measurement(1000)}))
        assert 4 <= len(checks) <= 6
        world.agent_state = NodeState.UNREACHABLE
        probe.poke()
        await ready(world, "AgentUnreachable")


class HungEvents:
    """An API server that takes the first Event, and then answers no request for one."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []

    async def create(self, namespace: str, body: Mapping[str, Any]) -> EventOutcome:
        self.bodies.append(body)
        return EventOutcome.WRITTEN if len(self.bodies) == 1 else EventOutcome.FAILED

    async def extend(self, namespace: str, name: str, series: Mapping[str, Any]) -> EventOutcome:
        return EventOutcome.FAILED


async def test_transitions_become_events_and_their_failure_stops_no_status(world: World) -> None:
    objective = {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "1ms"}
    events, body = HungEvents(), probe_body(interval="1s", objectives=[{**objective, "for": "1s"}])
    async with running(world, body, events=events) as probe:
        world.show(pod("a"))
        for _ in range(4):
            take(probe, "node-a", report({target_id("a"): measurement(*[10**7] * 200)}))
            await asyncio.sleep(1)
        await until(lambda: world.condition("ObjectivesMet")[0] == "False", what=lambda: world)
        (event,) = events.bodies
        assert (event["reason"], event["type"]) == ("ObjectiveMissed", "Warning")
        assert event["regarding"]["uid"] == probe.key.uid
        assert "reads: p99 of rx.total is 10ms, at most 1ms" in event["note"]
        world.agent_state = NodeState.UNREACHABLE
        await asyncio.sleep(60)
        probe.poke()
        await until(lambda: len(events.bodies) > 2, what=lambda: events.bodies)
        assert {each["reason"] for each in events.bodies[1:]} == {"NodeLost"}
        await until(lambda: world.status["phase"] == "Degraded", what=lambda: world.status)
