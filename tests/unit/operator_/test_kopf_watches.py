"""kopf asks for watches no more often than it must, and outlives every error in one."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any, cast

import kopf
import pytest
from kopf._cogs.clients import api, errors, watching

from latencyprobe_operator import main
from latencyprobe_operator.handlers import _configure
from latencyprobe_operator.kube.cluster import GROUP, PLURAL, VERSION, Cluster
from latencyprobe_operator.kube.kopf_watches import paced_watches
from latencyprobe_operator.main import Options
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json, probe_body

LOOP = VirtualTimeLoop
HOUR = 3600.0
# With the longest pause between two requests: a day has more than 8,640, an hour 360.
FEW_IN_AN_HOUR = 1000

INITIALIZING: Json = {
    "type": "ERROR",
    "object": {"kind": "Status", "code": 500, "message": "storage is (re)initializing"},
}
EXPIRED: Json = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}


class Api:
    """The API server behind kopf's HTTP: answers as the test scripts it, and counts requests."""

    def __init__(self) -> None:
        self.lived_seconds = 0.0
        self.events: deque[Any] = deque()
        """Of the next watch; an exception breaks it."""
        self.always: Any = None
        """An event of each watch."""
        self.refusals: deque[Exception] = deque()
        """Of the next lists."""
        self.lists = 0
        self.watches: list[float] = []

    async def get(self, url: str, **_: Any) -> Json:
        """One list."""
        self.lists += 1
        if self.refusals:
            raise self.refusals.popleft()
        return {"metadata": {"resourceVersion": str(self.lists)}, "items": []}

    async def stream(self, url: str, **_: Any) -> AsyncIterator[Any]:
        """One watch."""
        self.watches.append(asyncio.get_running_loop().time())
        assert len(self.watches) < 10 * FEW_IN_AN_HOUR, "asked for without a pause"
        while self.events:
            event = self.events.popleft()
            if isinstance(event, Exception):
                raise event
            yield event
        if self.always:
            yield self.always
        await asyncio.sleep(self.lived_seconds)

    def pauses(self) -> list[float]:
        """The seconds from the beginning of a watch to that of the next."""
        return [later - at for at, later in pairwise(self.watches)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Api:
    """What kopf's HTTP client reaches."""
    server = Api()
    monkeypatch.setattr(api, "get", server.get)
    monkeypatch.setattr(api, "stream", server.stream)
    return server


async def follow(seconds: float) -> list[Any]:
    """Have kopf follow LatencyProbes for some time; return their events."""
    settings = kopf.OperatorSettings()
    _configure(settings, scan=False)
    resource = kopf.Resource(GROUP, VERSION, PLURAL, namespaced=True)
    seen = []
    stream = watching.infinite_watch(
        settings=settings, resource=resource, namespace=cast(Any, "shop")
    )
    with paced_watches():
        async with aclosing(cast(Any, stream)):
            try:
                async with asyncio.timeout(seconds):
                    async for event in stream:
                        if event is not watching.Bookmark.LISTED:
                            seen.append(event)  # noqa: PERF401  (is cut off)
            except TimeoutError:
                pass
    return seen


def added(name: str) -> Json:
    """An event of a new probe."""
    return {"type": "ADDED", "object": probe_body(name)}


async def test_watches_that_end_at_once_are_asked_for_ever_more_seldom(server: Api) -> None:
    await follow(HOUR)

    assert 100 < len(server.watches) < FEW_IN_AN_HOUR
    assert server.lists == 1
    assert max(server.pauses()) > 5
    assert len(set(server.pauses()[-10:])) == 10  # at random, so that many do not come together


async def test_events_do_not_make_a_short_watch_a_good_one(server: Api) -> None:
    server.always = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    await follow(HOUR)

    assert len(server.watches) < FEW_IN_AN_HOUR


async def test_after_a_watch_that_lived_the_next_comes_at_once(server: Api) -> None:
    server.lived_seconds = 60
    await follow(HOUR)

    assert max(server.pauses()) < 60.3


@pytest.mark.parametrize("error", [EXPIRED, INITIALIZING])
async def test_watches_that_always_fail_do_not_list_all_the_time(server: Api, error: Json) -> None:
    server.always = error
    await follow(HOUR)

    assert 100 < len(server.watches) < FEW_IN_AN_HOUR
    assert server.lists < FEW_IN_AN_HOUR


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (INITIALIZING, "storage is (re)initializing (code 500)"),
        ({"type": "ERROR", "object": {"kind": "Status"}}, "cannot read an event of it"),
        ({"type": "ADDED", "object": None}, "cannot read an event of it"),
        (["no", "event"], "cannot read an event of it"),
        (json.JSONDecodeError("Unterminated string", "{", 0), "Unterminated string"),
        (errors.APIClientError("too old", status=410, headers={}), "too old"),
    ],
)
async def test_a_watch_that_fails_is_logged_and_begun_again(
    server: Api, failure: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.lived_seconds = 50
    server.events.extend([added("before"), failure, added("after")])
    seen = await follow(60)

    assert [event["object"]["metadata"]["name"] for event in seen] == ["before", "after"]
    assert server.lists == 2
    (line,) = caplog.messages
    assert "latencyprobes.v1alpha1.latencyprobe.io in namespace shop" in line
    assert message in line


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (errors.APINotFoundError("404 page not found", status=404, headers={}), "404 page"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "Expecting value"),
        (RecursionError("maximum recursion depth"), "maximum recursion depth"),
    ],
    ids=["not-served", "page-of-a-proxy", "too-deep"],
)
async def test_a_list_that_fails_is_asked_for_again(
    server: Api, caplog: pytest.LogCaptureFixture, refusal: Exception, message: str
) -> None:
    server.lived_seconds = 50
    server.events.append(added("after"))
    server.refusals.extend([refusal] * 5)
    seen = await follow(60)

    assert [event["object"]["metadata"]["name"] for event in seen] == ["after"]
    assert server.lists == 6
    assert server.watches[0] > 3, "ever longer pauses"
    (line,) = caplog.messages
    assert f"list of latencyprobes.v1alpha1.latencyprobe.io in namespace shop: {message}" in line


async def test_the_operator_paces_kopfs_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    unpaced, used = watching.watch_objs, []

    async def operator(**_: Any) -> None:
        used.append(watching.watch_objs)

    monkeypatch.setattr(kopf, "operator", operator)
    await main._run_kopf(Options(tls=cast(Any, None)), cast(Cluster, None), cast(Any, None))

    assert used != [unpaced]
    assert watching.watch_objs is unpaced
