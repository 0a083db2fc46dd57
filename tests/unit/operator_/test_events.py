"""Events have the API's form, and without the right to write them all else works."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.api.events import (
    EventReason,
    Series,
    Transition,
    event_body,
    event_name,
)
from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.kube import events as kube_events
from latencyprobe_operator.kube.cluster import ApiError
from latencyprobe_operator.kube.events import EventOutcome, Events
from latencyprobe_operator.probes.announcer import Announcer
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome
from tests.unit.hostile_text import HOSTILE
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import probe_spec

LOOP = VirtualTimeLoop
KEY = ProbeKey("uid-1", "shop", "checkout")
FORBIDDEN = ApiError(403, "Forbidden", "events.events.k8s.io is forbidden: User cannot create")


class Server:
    """The Events in the API server."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.failure: Exception | None = None

    def _count(self) -> None:
        self.requests += 1
        if self.failure:
            raise self.failure

    async def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        self._count()
        self.events[body["metadata"]["name"]] = dict(body)

    async def patch_event(self, namespace: str, name: str, series: Mapping[str, Any]) -> None:
        self._count()
        if name not in self.events:
            raise ApiError(404, "NotFound", "gone")
        self.events[name]["series"] = dict(series)


def writer(server: Server) -> Events:
    """What writes into this server."""
    return Events(server)  # type: ignore[arg-type]


def missed(number: int) -> list[Judgement]:
    """One objective that is missed at even numbers, and met at odd ones."""
    outcome = ObjectiveOutcome.MET if number % 2 else ObjectiveOutcome.MISSED
    return [Judgement(outcome, "reads: p99 of rx.total is 7ms, at most 5ms")]


async def announce(announcer: Announcer, at: float, number: int) -> None:
    """One status with this judgement."""
    announcer.observe({}, probe_spec(), (), missed(number), at=at)
    await announcer.write(at=at)


async def test_100_flips_in_10_minutes_are_counted_in_two_events() -> None:
    server = Server()
    announcer = Announcer(KEY, {}, writer(server))
    for number in range(100):
        await announce(announcer, 6.0 * number, number)
    await announcer.write(at=700)

    assert {each["reason"]: each["series"]["count"] for each in server.events.values()} == {
        "ObjectiveMissed": 50,
        "ObjectiveMet": 50,
    }
    assert server.requests <= 2 * 12


async def test_without_the_right_there_is_one_line_and_few_attempts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    server.failure = FORBIDDEN
    events = writer(server)
    loop = asyncio.get_running_loop()
    for number in range(600):
        announcer = Announcer(KEY, {}, events)
        await announce(announcer, loop.time(), 2 * number)
        await asyncio.sleep(6)

    assert [line.levelno for line in caplog.records] == [logging.WARNING]
    assert "cannot write Events in namespace shop, which needs create and patch" in caplog.text
    assert server.requests <= 7, "one in ten minutes"
    server.failure = None
    await asyncio.sleep(kube_events._REFUSED_S)
    await announce(Announcer(KEY, {}, events), loop.time(), 0)
    assert len(server.events) == 1, "the right was granted"


@pytest.mark.parametrize("failure", [OSError("refused"), ApiError(503, "", "away")])
async def test_an_event_that_could_not_be_sent_is_sent_later(failure: Exception) -> None:
    server = Server()
    server.failure = failure
    announcer = Announcer(KEY, {}, writer(server))
    await announce(announcer, 0, 0)
    assert server.events == {}

    server.failure = None
    await announcer.write(at=1)
    assert len(server.events) == 1


async def test_one_namespace_that_ends_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    events = writer(server)
    server.failure = ApiError(403, "Forbidden", "namespace shop because it is being terminated")
    assert await events.create("shop", {"metadata": {"name": "a"}}) is EventOutcome.REFUSED
    server.failure = None

    assert await events.create("other", {"metadata": {"name": "b"}}) is EventOutcome.WRITTEN
    assert caplog.records == []


@pytest.mark.parametrize(
    "reason",
    ["exceeded quota: events, used: count/events.events.k8s.io=1", "admission webhook denied it"],
)
async def test_a_refusal_in_one_namespace_stops_no_other(reason: str) -> None:
    server = Server()
    events = writer(server)
    server.failure = ApiError(403, "Forbidden", f'events "a" is forbidden: {reason}')
    assert await events.create("shop", {"metadata": {"name": "a"}}) is EventOutcome.REFUSED
    server.failure = None

    assert await events.create("other", {"metadata": {"name": "b"}}) is EventOutcome.WRITTEN
    assert await events.create("shop", {"metadata": {"name": "c"}}) is EventOutcome.REFUSED
    assert server.requests == 2, "the refused namespace is left alone for ten minutes"


async def test_many_refused_namespaces_take_one_line_and_little_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    events = writer(server)
    server.failure = FORBIDDEN
    for number in range(2 * kube_events._MOST_REFUSED):
        await events.create(f"team-{number}", {"metadata": {"name": "a"}})

    assert len(caplog.records) == 1
    assert len(events._refused_until) == kube_events._MOST_REFUSED
    assert f"team-{2 * kube_events._MOST_REFUSED - 1}" in events._refused_until


async def test_only_the_leader_writes_events() -> None:
    server = Server()
    events = Events(server, lambda: 0.0)  # type: ignore[arg-type]

    assert await events.create("shop", {"metadata": {"name": "a"}}) is EventOutcome.FAILED
    assert server.requests == 0


@given(st.text(max_size=2000) | st.just(HOSTILE * 40), st.integers(1, 9), st.text(max_size=300))
def test_an_event_keeps_the_limits_of_the_api_for_any_text(
    note: str, count: int, instance: str
) -> None:
    transition = Transition(reason=EventReason.NODE_LOST, subject="a", note=note, is_warning=True)
    body = event_body(KEY, "a", transition, Series(count, 1.5, 2.25), instance=instance)

    assert len(body["note"].encode()) <= 1024
    assert body["note"].isprintable()
    assert len(body["reportingInstance"]) <= 128
    assert body["eventTime"] == "1970-01-01T00:00:01.500000Z"
    assert ("series" in body) is (count > 1)
    if count > 1:
        assert body["series"] == {
            "count": count,
            "lastObservedTime": "1970-01-01T00:00:02.250000Z",
        }


@pytest.mark.parametrize("length", [1, 235, 236, 237, 253])
def test_the_name_of_an_event_is_a_name_for_any_probe(length: int) -> None:
    name = event_name(ProbeKey("u", "n", ("a." * 127)[:length].rstrip(".")), "0" * 16)

    assert len(name) <= 253
    assert ".." not in name
