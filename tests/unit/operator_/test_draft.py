"""Rows of pods are not built while no budget allows to write them: the writes stay the same."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from latencyprobe.domain.measurement import Measurement
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe_operator.probes import status
from latencyprobe_operator.probes.document import Document
from latencyprobe_operator.probes.facts import PodFacts, ProbeFacts
from latencyprobe_operator.probes.row_bytes import RowBytes
from tests.unit.operator_.probe_world import World, report, running, take
from tests.unit.operator_.status_facts import NOW, SLOW_READER, facts, listed, noisy
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import pod, probe_body, target_id

LOOP = VirtualTimeLoop
NAMES = [f"pod-{number}" for number in range(20)]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of pods in the whole statuses that were built."""
    numbers: list[int] = []

    def build(facts: ProbeFacts, *, now: str) -> Document:
        numbers.append(len(facts.pods))
        return status.build(facts, now=now)

    monkeypatch.setattr("latencyprobe_operator.probes.probe.build", build)
    return numbers


def noise() -> Iterator[Measurement]:
    """Figures of an interval, of all stages, that have news each time."""
    chance = random.Random(7)
    while True:
        yield noisy(chance)


async def statuses(intervals: int, **spec: Any) -> list[Document]:
    """The status after each interval of a probe with noisy figures."""
    world, seen, figures = World(), list[Document](), noise()
    loop = asyncio.get_running_loop()
    begin = loop.time()

    def clock() -> float:
        return 1_800_000_000 + loop.time() - begin

    body = probe_body(**spec)
    async with running(world, body, wall_clock=clock, steady_clock=clock) as probe:
        world.show(*map(pod, NAMES))
        for _ in range(intervals):
            take(
                probe,
                "node-a",
                report({target_id(name): next(figures) for name in NAMES}),
                fresh=True,
            )
            await asyncio.sleep(10)
            seen.append(json.loads(json.dumps(world.status)))
    return seen


async def test_the_same_is_written_though_few_rows_are_built(
    built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await statuses(60)
    few = len(built)
    monkeypatch.setattr(RowBytes, "least_bytes", lambda *_: 0.0)
    expected = await statuses(60)

    assert found == expected
    assert len(built) - few >= 60
    assert few < 25
    assert len({json.dumps(each["pods"]) for each in found}) >= 6


@pytest.mark.parametrize(
    "duration_s",
    [
        215,
        285,
        *(pytest.param(s, marks=pytest.mark.thorough) for s in range(225, 285, 10)),
    ],
)
async def test_a_completed_probe_has_its_last_rows_though_they_were_beyond_the_budget(
    built: list[int], duration_s: int
) -> None:
    intervals = duration_s // 10 + 1
    (before, after) = (await statuses(intervals, duration=f"{duration_s}s"))[-2:]

    assert len(built) < 15
    assert after["phase"] == "Completed"
    assert after["pods"] != before["pods"]
    assert len(after["pods"]) == len(NAMES)
    assert after["omittedPods"] == 0


async def test_rows_that_have_not_changed_are_no_reason_to_leave_any_out() -> None:
    pods = [listed("a", "node-a", ("server",), SLOW_READER)]
    rows = RowBytes()
    rows.weigh({"pods": [{"stages": [{}, {}]}]}, 10_000)
    assert rows.are_written(pods), "nothing is known yet"
    rows.mark_written({"pods": []}, None)
    assert rows.are_written(pods)
    assert not rows.are_written(others := [listed("b", "node-a", ("server",), SLOW_READER)])
    rows.mark_written({"phase": "Running"}, rows.written)
    assert not rows.are_written(others)
    rows.forget()
    assert rows.are_written(others)


@pytest.mark.parametrize("pods", [[], [listed("a", "n", ("server",), SLOW_READER)] * 400])
def test_no_rows_and_too_many_are_built_to_know_their_size(pods: Sequence[PodFacts]) -> None:
    rows = RowBytes()
    rows.weigh({"pods": [{"stages": [{}]}]}, 250)

    assert rows.least_bytes(pods) == 0


@pytest.mark.parametrize("peers", [0, 2, 5])
def test_a_part_without_pods_and_its_rows_are_the_whole_status(peers: int) -> None:
    waited_for = tuple(
        Peer(Endpoint(ip_address("10.0.0.7"), port), "missingAnswers", 1, 2 * 10**9, 2 * 10**9)
        for port in range(peers)
    )
    pending = {"missingAnswers": Pending(1, 1, 0, 2 * 10**9, 2 * 10**9)}
    measured = SLOW_READER + Measurement(pending=pending, peers=waited_for)
    of_pods = [listed(name, "node-a", ("server",), measured) for name in "ab"]
    found = facts(pods=of_pods, omitted_pods=7, merged=SLOW_READER, last_report_time=NOW)
    part = status.build_without_pods(found, now=NOW)

    whole = status.build(found, now=NOW)
    assert {**part, **status.pod_rows(found)} == whole
    assert ("omittedForSize" in whole) is (peers > 2)
    assert "pods" not in part
