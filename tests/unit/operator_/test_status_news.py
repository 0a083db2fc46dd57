"""What is worth a write of the status: news, and little more than a sign of life without."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import DEFAULT_MODULES, stages_of
from latencyprobe_operator.observed_state import AgentView
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.byte_budget import (
    BURST_BYTES,
    BYTES_PER_MINUTE,
    LIGHT_BURST_BYTES,
    ByteBudget,
)
from latencyprobe_operator.probes.document import MAX_BYTES, Document, size_bytes
from latencyprobe_operator.probes.fitting import _fits, fit
from latencyprobe_operator.probes.status_news import differs, light
from tests.unit.operator_.probe_world import World, report, running, take
from tests.unit.operator_.status_facts import NOW, SLOW_READER, facts, listed, noisy
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import pod, probe_body, target_id

LOOP = VirtualTimeLoop
# Of one bucket, and above it.
WITHIN, BEYOND = 1.09, 1.0906
TIMES = ("meanNs", "p50Ns", "p90Ns", "p99Ns", "maxNs")


def document() -> Document:
    """A status with two pods and a node's figures."""
    pods = [
        listed("a", "node-a", ("server",), SLOW_READER),
        listed("b", "node-b", ("server",), SLOW_READER),
    ]
    return status.build(facts(pods=pods, merged=SLOW_READER, last_report_time=NOW), now=NOW)


@given(
    st.integers(0, 1),
    st.integers(0, 2),
    st.sampled_from([*TIMES, "count"]),
    st.floats(1, WITHIN),
    st.booleans(),
)
def test_a_figure_within_a_bucket_is_no_news_and_beyond_it_is(
    row: int, stage: int, figure: str, factor: float, up: bool
) -> None:
    before, near, far = (document() for _ in range(3))
    value = before["pods"][row]["stages"][stage][figure]
    for after, by in ((near, factor), (far, BEYOND)):
        after["pods"][row]["stages"][stage][figure] = value * by if up else value / by

    assert not differs(before, near)
    assert not differs(near, before)
    assert differs(before, far)
    assert differs(far, before)


@given(st.permutations([0, 1]))
def test_the_order_of_pods_is_no_news(order: list[int]) -> None:
    before, after = document(), document()
    after["pods"] = [after["pods"][index] for index in order]
    after["lastReportTime"] = "later"

    assert not differs(before, after)


def _set(*path: Any) -> Callable[[Document], None]:
    *places, key, value = path

    def change(changed: Document) -> None:
        part: Any = changed
        for place in places:
            part = part[place]
        if value is None:
            del part[key]
        else:
            part[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "news"),
    [
        (_set("pods", 0, "verdict", "bottleneck", "None"), True),
        (_set("pods", 0, "name", "c"), True),
        (_set("pods", 1, None), True),
        (_set("pods", 0, "ended", True), True),
        (_set("pods", 0, "counters", "retransmits", 1), True),
        (_set("pods", 0, "stages", 0, None), True),
        (_set("omittedPods", 1), True),
        (_set("targets", "pods", 3), True),
        (_set("phase", "Degraded"), True),
        (_set("conditions", 0, "status", "False"), True),
        (_set("conditions", 0, "reason", "NoAgent"), True),
        (_set("conditions", 0, "message", "another text"), True),
        (_set("summary", "p99", "2ms"), True),
        (_set("summary", "bottleneck", "Peer"), True),
        (_set("summary", "unobservedSeconds", 12), True),
        (_set("nodes", [{"name": "a", "state": "Partial", "message": "12s of"}]), True),
        (_set("nodeContext", [{"node": "a", "counters": {"x": 1}, "stages": []}]), True),
        (_set("summary", "p99", "10.5ms"), False),
        (_set("pods", 0, "stages", 0, "sharePercent", 10.9), False),
        (_set("pods", 0, "counters", "rtos", None), False),
        (_set("pods", 0, "verdict", "evidence", 0, "x"), True),
    ],
)
def test_news_are_verdicts_conditions_members_and_large_changes(
    change: Callable[[Document], None], news: bool
) -> None:
    before, after = document(), document()
    change(after)

    assert differs(before, after) is news
    assert differs(after, before) is news


def test_figures_within_a_sentence_are_no_news() -> None:
    before, after = document(), document()
    before["summary"]["message"] = "rx.socket of pod-7 holds 90% of 1.2ms, 3,400 packets"
    after["summary"]["message"] = "rx.socket of pod-7 holds 91% of 1.3ms, 3,402 packets"
    assert not differs(before, after)
    after["summary"]["message"] = "rx.socket of pod-8 holds 90% of 1.2ms, 3,400 packets"
    assert differs(before, after)


def test_long_waits_are_news_and_short_ones_are_not() -> None:
    def waiting(**pending: Pending) -> Document:
        measured = SLOW_READER + Measurement(pending=pending)
        pods = [listed("a", "node-a", ("server",), measured)]
        return status.build(facts(pods=pods, merged=SLOW_READER, last_report_time=NOW), now=NOW)

    nothing = waiting()
    busy, busier = (waiting(requestsInService=Pending(n, n, 0, 5_000, 5_000)) for n in (1, 40))
    hung = waiting(unreadSegments=Pending(200, 20, 40_000, 6 * 10**9, 9 * 10**9))
    later = waiting(unreadSegments=Pending(200, 20, 40_000, 16 * 10**9, 9 * 10**9))

    assert "pending" not in nothing["pods"][0]
    assert hung["pods"][0]["pending"]["unreadSegments"]["oldestNs"] == 6 * 10**9
    assert not any(differs(a, b) for a in (nothing, busy, busier) for b in (nothing, busy, busier))
    assert all(differs(a, b) for a, b in ((nothing, hung), (hung, nothing), (hung, later)))


def test_a_status_has_the_two_worst_peers_of_a_pod_and_another_one_is_news() -> None:
    def waiting_for(*ports: int) -> Document:
        found = [
            Peer(Endpoint(ip_address("10.0.0.7"), port), "missingAnswers", 1, 2 * 10**9, 2 * 10**9)
            for port in ports
        ]
        pending = {"missingAnswers": Pending(1, 1, 0, 2 * 10**9, 2 * 10**9)}
        measured = SLOW_READER + Measurement(pending=pending, peers=tuple(found))
        pods = [listed("a", "node-a", ("server",), measured)]
        return status.build(facts(pods=pods, merged=SLOW_READER, last_report_time=NOW), now=NOW)

    three, two, another = waiting_for(1, 2, 3), waiting_for(2, 1), waiting_for(1, 4)
    assert [peer["address"] for peer in three["pods"][0]["peers"]] == ["10.0.0.7:1", "10.0.0.7:2"]
    assert three["omittedForSize"] == {"peers": 1}
    assert waiting_for(*range(1, 9))["omittedForSize"] == {"peers": 6}
    assert "omittedForSize" not in two
    assert not differs(three, two)
    assert differs(three, another)


def test_a_light_document_has_the_pods_of_before() -> None:
    before, after = document(), document()
    after["pods"][0]["name"], after["summary"]["p99"] = "c", "9ms"

    part = light(before, after)
    assert part["pods"] == before["pods"]
    assert part["summary"]["p99"] == "9ms"
    assert light({}, after).keys() == after.keys() - {"pods", "omittedPods"}


def test_the_budget_holds_over_an_hour_from_any_moment() -> None:
    now = [0.0]
    budget = ByteBudget(lambda: now[0])
    written = []
    for _ in range(2 * 3600):
        now[0] += 1
        if budget.has(50_000):
            budget.take(50_000)
            written.append(now[0])

    for begin in written:
        taken = sum(50_000 for at in written if begin <= at < begin + 3600)
        assert taken <= 64 * 1024 * 60
    assert BURST_BYTES + 60 * BYTES_PER_MINUTE <= 64 * 1024 * 60
    assert BURST_BYTES > MAX_BYTES


CHANCE = random.Random(7)


async def test_noisy_figures_take_64_kib_a_minute_at_most(world: World) -> None:
    names = [f"pod-{number}" for number in range(20)]
    async with running(world, probe_body()) as probe:
        world.show(*map(pod, names))
        for _ in range(360):
            windows = {target_id(name): noisy(CHANCE) for name in names}
            take(probe, "node-a", report(windows), fresh=True)
            await asyncio.sleep(10)

        assert world.written_bytes <= 60 * 64 * 1024
        assert 60 <= len(world.writes) <= 362
        sizes = size_bytes(world.status)
        # Each write of all figures would have taken ten times as much.
        assert sizes * 360 > 5 * world.written_bytes


class Flapping(World):
    """The agent of node-b states another reason for each of its stages each time."""

    def __init__(self) -> None:
        super().__init__()
        self.views = 0
        self.rows = 0

    def agent(self, node: str) -> AgentView:
        view = super().agent(node)
        if node != "node-b":
            return view
        self.views += 1
        letters = "".join(chr(0x4E00 + int(digit)) for digit in str(self.views))
        coverage = {
            stage.name: StageCoverage(stage.name, CoverageState.PARTIAL, "hook", letters * 60)
            for stage in stages_of(DEFAULT_MODULES)
        }
        return replace(view, coverage=coverage)

    async def patch_status(
        self, namespace: str, name: str, patch: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.rows += "pods" in patch["status"]
        return await super().patch_status(namespace, name, patch)


async def test_an_agent_that_flaps_takes_neither_bytes_nor_other_nodes_rows() -> None:
    world = Flapping()
    names = [f"pod-{number}" for number in range(3)]
    windows = [{target_id(name): noisy(CHANCE) for name in names} for _ in range(5)]
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(*map(pod, names), pod("evil", node="node-b"))
        rows = []
        for number in range(600):
            take(probe, "node-a", report(windows[number % 5]), fresh=True)
            await asyncio.sleep(1)
            rows.append(world.rows)

        assert world.written_bytes <= BURST_BYTES + LIGHT_BURST_BYTES + 10 * BYTES_PER_MINUTE
        # Also once the burst is used up.
        assert rows[-1] - rows[300] >= 3


async def test_quiet_figures_cost_a_sign_of_life_a_minute(world: World) -> None:
    figures = noisy(CHANCE, spread=0)
    async with running(world, probe_body()) as probe:
        world.show(pod("a"))
        writes, size = 0, 0
        for interval in range(360):
            take(probe, "node-a", report({target_id("a"): figures}), fresh=True)
            await asyncio.sleep(10)
            if interval == 1:
                writes, size = len(world.writes), world.written_bytes

        assert len(world.writes) - writes <= 60
        assert world.written_bytes - size < 60 * 1024


@pytest.fixture
def world() -> World:
    """A world without pods."""
    return World()


def large(pods: int, nodes: int, *, stages: int = 20, peers: int = 0) -> Document:
    """A status of this many pods and nodes, of rows of 200 bytes."""
    row: dict[str, Any] = {"text": "x" * 180}
    plain = [{"name": f"tcp.{n}", **row} for n in range(stages)]
    parts = [{"name": "rx.total", **row}, {"name": "rx.stack", "sharePercent": 1, **row}]
    return {
        "pods": [
            {
                "name": f"{n}",
                "stages": [*parts, *plain],
                **({"peers": [row] * peers} if peers else {}),
            }
            for n in range(pods)
        ],
        "omittedPods": 5,
        "nodes": [{"name": f"{n}", "stages": plain, **row} for n in range(nodes)],
        "omittedNodes": 0,
        "nodeContext": [{"node": "a", "stages": plain}],
        **({"omittedForSize": {"peers": 7}} if peers else {}),
    }


@given(
    st.integers(0, 2**63), st.text(max_size=60), st.sampled_from(["a", 'say "no"', "\\x1b", "é"])
)
def test_a_small_status_fits_without_its_json(number: int, text: str, name: str) -> None:
    stage = {"name": name, **dict.fromkeys((*TIMES, "lost"), number), "sharePercent": number / 7}
    row = {"name": text, "ended": True, "stages": [stage] * 20, "counters": {name: number}}
    for pods in range(1, 120):
        document = {"pods": [row] * pods, "omittedPods": number, "nodes": [], "omittedNodes": 0}
        if not _fits(document):
            break
        assert size_bytes(document) <= MAX_BYTES
    assert pods > 10


def test_a_status_that_fits_stays_as_it_is() -> None:
    small = large(3, 3)
    assert fit(copy.deepcopy(small)) == small


@given(st.integers(1, 100), st.integers(1, 50), st.integers(0, 30), st.integers(0, 2))
def test_every_status_fits_and_says_what_it_lacks(
    pods: int, nodes: int, stages: int, peers: int
) -> None:
    whole = large(pods, nodes, stages=stages, peers=peers)
    before = size_bytes(whole)
    fitted = fit(copy.deepcopy(whole))

    assert size_bytes(fitted) <= MAX_BYTES
    omitted = fitted.get("omittedForSize", {})
    assert (before <= MAX_BYTES) is (fitted == whole)
    assert fitted["omittedPods"] - 5 == pods - len(fitted["pods"])
    assert all(len(row.get("peers", ())) == peers for row in fitted["pods"])
    assert omitted.get("peers", 0) == (7 if peers else 0), "they were counted before"
    # In this order: the next kind goes only if all of the ones before went.
    if "nodeStages" in omitted:
        assert all(len(row["stages"]) == 2 for row in fitted["pods"])
    if len(fitted["pods"]) < pods:
        assert all(not row["stages"] for row in fitted["nodes"])
        assert [row["name"] for row in fitted["pods"][:1]] == ["0"]
