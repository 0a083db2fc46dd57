"""The cause that a status names for all pods: of their sum, or of the pods that accuse one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.causes import CAUSES, NO_ACCUSATION, Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import (
    CONNTRACK_FULL_PERCENT,
    Measurement,
    NodeMeasurement,
    StageMeasurement,
)
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.stages import CPU_PRESSURE
from latencyprobe.domain.summary import is_by_distance
from latencyprobe.domain.verdict import Verdict, judge
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.facts import AccusedCause, PodFacts
from latencyprobe_operator.probes.status_news import differs
from tests.unit.operator_.probe_world import World, report, running, take, take_deltas
from tests.unit.operator_.status_facts import NOW, SLOW_READER, facts, listed
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tests.unit.operator_.waiting import until
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, probe_body, target_id

LOOP = VirtualTimeLoop
SECOND = 10**9
UNREAD = {"unreadSegments": Pending(200, 20, 40_000, 6 * SECOND, 90 * SECOND)}
HUNG = Measurement(pending=UNREAD)
HANDSHAKES = Measurement({"tcp.handshake": StageMeasurement(Histogram.of([9_000] * 20))})
QUICK = measurement(*[20_000] * 500)
NO_PENDING: Mapping[str, Pending] = {}
ACCUSATIONS = sorted(set(Bottleneck) - NO_ACCUSATION)


def summary_of(**parts: Any) -> Document:
    """The summary of a status of these facts."""
    summary: Document = status.build(facts(**parts), now=NOW)["summary"]
    return summary


def accused(**causes: tuple[int, int]) -> dict[Bottleneck, AccusedCause]:
    """The causes that pods name: by name, their number and their waiting."""
    return {Bottleneck(name): AccusedCause(*each) for name, each in causes.items()}


def with_verdict(name: str, cause: Bottleneck, **parts: Any) -> PodFacts:
    """A pod with this verdict on it."""
    verdict = Verdict(cause, 90, (), CAUSES[cause].next_step, **parts)
    found = listed(name, "node-a", ("server",), QUICK)
    return replace(found, report=replace(found.report, verdict=verdict))


def test_pods_that_all_hang_are_named_although_their_sum_has_no_packet() -> None:
    pods = [listed(name, "node-a", ("server",), HANDSHAKES + HUNG) for name in "ab"]
    found = summary_of(
        pods=pods, merged=HANDSHAKES + HANDSHAKES, accused=accused(SlowReader=(2, 180 * SECOND))
    )
    assert [each.report.verdict.bottleneck for each in pods] == ["SlowReader"] * 2
    assert (found["bottleneck"], found["stage"]) == ("SlowReader", "rx.socket")
    assert found["message"].startswith("pods with this verdict: 2 of 2, the worst is a; Profile")
    assert "p99" not in found


def test_one_pod_that_hangs_among_healthy_ones_is_named() -> None:
    healthy = [listed(name, "node-a", ("server",), QUICK) for name in "bc"]
    pods = [listed("a", "node-b", ("server",), QUICK + HUNG), *healthy]
    found = summary_of(
        pods=pods,
        omitted_pods=9,
        merged=QUICK,
        accused=accused(SlowReader=(1, 90 * SECOND)),
    )
    assert found["bottleneck"] == "SlowReader"
    assert found["message"].startswith("pods with this verdict: 1 of 12, the worst is a; ")
    assert found["message"].endswith(CAUSES[Bottleneck.SLOW_READER].next_step)
    assert found["p99"] == "20us"


def test_of_a_sum_it_is_not_known_that_nothing_waits() -> None:
    found = summary_of(merged=HANDSHAKES)
    assert found["bottleneck"] == "InsufficientData"
    assert found["message"] == "0 packets in the window; a verdict needs 100"
    read = listed("a", "node-a", ("server",), HANDSHAKES + Measurement(pending=NO_PENDING))
    assert "20 connections of clients were opened, without any data seen" in (
        read.report.verdict.evidence
    )


def test_a_sum_that_accuses_a_cause_is_not_overruled() -> None:
    found = summary_of(merged=SLOW_READER, accused=accused(Peer=(1, 900 * SECOND)))
    assert found["bottleneck"] == "SlowReader"
    assert "rx.socket: 9ms on average" in found["message"]


@given(
    st.sampled_from([Measurement(), HANDSHAKES, QUICK]),
    st.dictionaries(
        st.sampled_from(ACCUSATIONS),
        st.builds(AccusedCause, st.integers(1, 99), st.integers(0, 2**53)),
        min_size=1,
    ),
)
def test_a_cause_that_a_pod_names_is_never_passed_over(
    merged: Measurement, causes: dict[Bottleneck, AccusedCause]
) -> None:
    found = summary_of(merged=merged, accused=causes, omitted_pods=99)
    named = causes[found["bottleneck"]]
    assert named.waiting_ns == max(each.waiting_ns for each in causes.values())
    assert found["message"].startswith(f"pods with this verdict: {named.pods} of 99; ")


@pytest.mark.parametrize(
    ("causes", "before", "named"),
    [
        ({"Peer": (9, 1000), "DNS": (1, 2000)}, None, "DNS"),
        ({"DNS": (1, 1000), "Peer": (1, 1000)}, None, "Peer"),
        ({"DNS": (1, 1000), "Peer": (1, 1000)}, "DNS", "DNS"),
        ({"DNS": (1, 1000), "Peer": (1, 1050)}, "DNS", "DNS"),
        ({"DNS": (1, 1000), "Peer": (1, 1999)}, "DNS", "DNS"),
        ({"DNS": (1, 1000), "Peer": (1, 2000)}, "DNS", "Peer"),
        ({"DNS": (1, 1000), "Peer": (1, 1050)}, "None", "Peer"),
        ({"Drops": (1, 0), "Network": (3, 0)}, "Network", "Network"),
    ],
)
def test_the_longest_waiting_decides_and_noise_changes_no_verdict(
    causes: dict[str, tuple[int, int]], before: str | None, named: str
) -> None:
    previous = {"summary": {"bottleneck": before}} if before else {}
    found = summary_of(accused=accused(**causes), previous=previous)
    assert found["bottleneck"] == named


def test_a_living_pod_is_the_worst_and_an_ended_one_only_without_it() -> None:
    ended = replace(with_verdict("gone", Bottleneck.PEER), ended=True)
    living = with_verdict("here", Bottleneck.PEER)
    causes = accused(Peer=(2, SECOND))
    assert "the worst is here;" in summary_of(pods=[ended, living], accused=causes)["message"]
    assert "the worst is gone;" in summary_of(pods=[ended], accused=causes)["message"]


@pytest.mark.parametrize(
    ("culprits", "named"),
    [(("pod shop/db-0", "pod shop/db-0"), True), (("pod shop/db-0", "pod shop/db-1"), False)],
)
def test_pods_that_agree_on_a_culprit_and_a_stage_name_them(
    culprits: tuple[str, str], named: bool
) -> None:
    pods = [
        with_verdict(name, Bottleneck.PEER, stage=stage, culprit=culprit)
        for name, stage, culprit in zip("ab", ("peer.response", None), culprits, strict=True)
    ]
    found = summary_of(pods=pods, accused=accused(Peer=(2, SECOND)))
    assert ("; the longest for pod shop/db-0; " in found["message"]) is named
    assert "stage" not in found


def test_another_worst_pod_is_no_news_and_another_cause_is() -> None:
    def document(*names: str, cause: Bottleneck = Bottleneck.PEER, count: int = 2) -> Document:
        pods = [with_verdict(name, cause) for name in names]
        causes = {cause: AccusedCause(count, SECOND)}
        return status.build(facts(pods=pods, accused=causes, omitted_pods=9), now=NOW)

    before = document("checkout-1", "checkout-22")
    other = document("checkout-22", "checkout-1", count=3)
    assert before["summary"]["message"] != other["summary"]["message"]
    assert not differs(before, other)
    assert differs(before, document("checkout-1", "checkout-22", cause=Bottleneck.DNS))


@pytest.fixture
def world() -> World:
    """A world without pods."""
    return World()


@pytest.mark.parametrize("give", [take, take_deltas], ids=["windows", "older agent"])
async def test_a_probe_names_the_pod_that_hangs_beyond_those_that_it_lists(
    world: World, give: Any
) -> None:
    async with running(world, probe_body(interval="1s", report={"maxPods": 1})) as probe:
        world.show(*map(pod, "abc"))
        await until(lambda: world.condition()[1] == "Measuring", what=lambda: world.status)
        figures = {target_id(name): QUICK for name in "ac"}
        give(probe, "node-a", report({**figures, target_id("b"): QUICK + HUNG}))
        await until(lambda: world.status.get("pods"), what=lambda: world.status)
        assert world.status["summary"]["bottleneck"] == "None"
        give(probe, "node-a", report({**figures, target_id("b"): QUICK + HUNG}))
        await asyncio.sleep(2)
        found = world.status["summary"]
        assert found["bottleneck"] == "SlowReader"
        assert found["message"].startswith("pods with this verdict: 1 of 3")

        for cause in ("SlowReader", "None"):
            give(
                probe,
                "node-a",
                report({target_id(name): replace(QUICK, pending={}) for name in "abc"}),
            )
            await asyncio.sleep(2)
            assert world.status["summary"]["bottleneck"] == cause


async def test_another_operator_names_the_cause_of_before_from_its_first_report_on(
    world: World,
) -> None:
    body = probe_body(interval="1s")
    body["status"] = {"summary": {"bottleneck": "SlowReader"}}
    async with running(world, body) as probe:
        world.show(pod("a"))
        await until(lambda: world.condition()[1] == "Measuring", what=lambda: world.status)
        take(probe, "node-a", report({target_id("a"): QUICK + HUNG}))
        await until(lambda: world.status.get("pods"), what=lambda: world.status)
        assert world.status["summary"]["bottleneck"] == "SlowReader"


def test_the_distance_to_the_peers_hides_no_pod_and_is_none_of_its_faults() -> None:
    quick = StageMeasurement(Histogram.of([20_000] * 100))
    names = ("rx.socket", "rx.total", "tx.stack", "tx.total")
    round_trips = StageMeasurement(Histogram.of([40_000_000] * 100))
    far = Measurement({**dict.fromkeys(names, quick), "tcp.rtt": round_trips})
    of_sum = judge(far)
    assert of_sum.bottleneck == "Network"
    assert is_by_distance(of_sum.bottleneck, of_sum.waiting_ns)
    assert summary_of(merged=far)["bottleneck"] == "Network"
    found = summary_of(
        merged=far,
        pods=[listed("a", "node-a", ("server",), far + HUNG)],
        accused=accused(SlowReader=(1, 90 * SECOND)),
    )
    assert found["bottleneck"] == "SlowReader"
    assert found["message"].startswith("pods with this verdict: 1 of 1, the worst is a; ")


def test_a_pod_that_is_far_away_is_not_the_worst_of_those_whose_network_is_slower() -> None:
    far = with_verdict("far", Bottleneck.NETWORK)
    slower = with_verdict("slower", Bottleneck.NETWORK, waiting_ns={"Network": SECOND})
    found = summary_of(pods=[far, slower], accused=accused(Network=(2, SECOND)))
    assert "the worst is slower;" in found["message"]


CPU = {"cpuPeriods": 100, "cpuThrottledPeriods": 2, "cpuThrottledNs": 10**7, CPU_PRESSURE: SECOND}
BUSY_NODE = {"cpuTimeNs": 100, "cpuStealNs": 2, CONNTRACK_FULL_PERCENT: 85}


def test_lines_beside_a_verdict_come_and_go_without_news() -> None:
    def document(counters: Mapping[str, int], of_node: Mapping[str, int]) -> Document:
        node = NodeMeasurement({}, of_node)
        measured = replace(SLOW_READER, counters=counters)
        pods = [listed("a", "node-a", ("server",), measured, of_node=node)]
        found = facts(pods=pods, merged=measured, node_context={"node-a": node})
        built = status.build(found, now=NOW)
        # Figures are news by themselves.
        for row in built["pods"]:
            del row["counters"]
        del built["nodeContext"]
        return built

    beside = document(CPU, BUSY_NODE)
    without = document({}, {"cpuTimeNs": 100})
    lines = set(beside["pods"][0]["verdict"]["evidence"])
    added = lines - set(without["pods"][0]["verdict"]["evidence"])
    assert len(added) == 4
    assert not differs(without, beside)
    assert not differs(beside, without)
    other = {**without, "pods": [{**without["pods"][0], "verdict": {}}]}
    assert differs(without, other)
