"""An informer asks the API server no more often than it must, whatever the answers are."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from latencyprobe_operator.kube.cluster import ApiError, ExpiredError, WatchEvent
from latencyprobe_operator.kube.directory import PodIndex
from latencyprobe_operator.kube.informer import Change, Informer, Scope
from latencyprobe_operator.model import Pod, read_pod
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json, pod_body, pod_texts

LOOP = VirtualTimeLoop
HOUR = 3600.0
# With the longest pause between two requests: a day has more than 8,640, an hour 360.
FEW_IN_AN_HOUR = 1000


class Api:
    """The API server: answers as the test scripts it, and keeps what was asked."""

    def __init__(self, *, lived_seconds: float = 0.0) -> None:
        self.pods: list[Json] = [pod_body("a")]
        self.lived_seconds = lived_seconds
        self.lists: list[float] = []
        self.watches: list[tuple[float, str]] = []
        self.list_errors: deque[Exception] = deque()
        self.watch_errors: deque[Exception] = deque()
        self.events: deque[WatchEvent] = deque()

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        """One list."""
        self.lists.append(asyncio.get_running_loop().time())
        if self.list_errors:
            raise self.list_errors.popleft().with_traceback(None)
        for body in self.pods:
            take(body)
        return str(len(self.lists))

    async def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        """One watch."""
        self.watches.append((asyncio.get_running_loop().time(), since))
        while self.events:
            yield self.events.popleft()
        await asyncio.sleep(self.lived_seconds)
        if self.watch_errors:
            raise self.watch_errors.popleft().with_traceback(None)

    @property
    def requests(self) -> int:
        """How often it was asked."""
        return len(self.lists) + len(self.watches)

    def pauses(self) -> list[float]:
        """The seconds from the beginning of a watch to that of the next."""
        times = [at for at, _ in self.watches]
        return [later - at for at, later in pairwise(times)]


class Silent:
    """An audience that only counts."""

    def __init__(self) -> None:
        self.lists = self.refusals = 0
        self.changed: list[str] = []

    def on_list(self, changes: Mapping[str, Change[Pod]]) -> None:
        self.lists += 1

    def on_change(self, namespace: str, change: Change[Pod]) -> None:
        self.changed += [pod.name for pod in change.changed]

    def on_refusal(self) -> None:
        self.refusals += 1


@asynccontextmanager
async def following(api: Api, audience: Silent) -> AsyncIterator[Informer[Pod]]:
    """An informer that runs."""
    informer = Informer(api, Scope(None), read_pod, audience, index=PodIndex())
    task = asyncio.create_task(informer.run())
    try:
        yield informer
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_watches_that_end_at_once_are_asked_for_ever_more_seldom() -> None:
    api = Api()
    async with following(api, Silent()):
        await asyncio.sleep(HOUR)

    assert 100 < len(api.watches) < FEW_IN_AN_HOUR
    assert len(api.lists) == 1
    assert max(api.pauses()) > 5


async def test_events_do_not_make_a_short_watch_a_good_one() -> None:
    api = Api()
    async with following(api, Silent()):
        for version in range(int(HOUR)):
            api.events.append(WatchEvent("BOOKMARK", {}, str(version)))
            await asyncio.sleep(1)

    assert len(api.watches) < FEW_IN_AN_HOUR


async def test_after_a_watch_that_lived_the_next_comes_at_once() -> None:
    api = Api(lived_seconds=300)
    async with following(api, Silent()):
        await asyncio.sleep(HOUR)

    assert max(api.pauses()) < 300.3


async def test_a_version_that_is_always_forgotten_is_no_reason_to_list_all_the_time() -> None:
    api = Api()
    api.watch_errors.extend([ExpiredError(410, "Expired", "too old")] * 10_000)
    async with following(api, Silent()):
        await asyncio.sleep(HOUR)

    assert api.requests < 2 * FEW_IN_AN_HOUR
    assert len(api.lists) > 100


@pytest.mark.parametrize(
    "error",
    [
        ApiError(503, "", "etcd is away"),
        ApiError(403, "Forbidden", "pods is forbidden"),
        ConnectionRefusedError(),
        TimeoutError(),
        json.JSONDecodeError("Expecting value", "<html>", 0),
    ],
)
async def test_lists_that_fail_are_asked_for_ever_more_seldom(error: Exception) -> None:
    api = Api()
    api.list_errors.extend([error] * 10_000)
    async with following(api, Silent()):
        await asyncio.sleep(HOUR)

    assert 100 < api.requests < FEW_IN_AN_HOUR


async def test_a_watch_goes_on_from_the_last_event_or_bookmark() -> None:
    api = Api()
    api.events.extend(
        [WatchEvent("ADDED", pod_body("b"), "10"), WatchEvent("BOOKMARK", {"metadata": {}}, "20")]
    )
    audience = Silent()
    async with following(api, audience) as informer:
        await asyncio.sleep(1)
        assert sorted(informer.pods_in("shop")) == ["uid-a", "uid-b"]

    assert [since for _, since in api.watches][:2] == ["1", "20"]
    assert audience.changed == ["b"]


@pytest.mark.parametrize(
    ("error", "lists"),
    [
        (ConnectionResetError(), 1),
        (ApiError(429, "TooManyRequests", "please try again later"), 1),
        (ApiError(500, "InternalError", "storage is (re)initializing"), 2),
        (ExpiredError(410, "Expired", "too old resource version"), 2),
    ],
)
async def test_only_what_may_have_lost_events_is_followed_by_a_list(
    error: Exception, lists: int
) -> None:
    api = Api(lived_seconds=100)
    api.watch_errors.append(error)
    async with following(api, Silent()):
        await asyncio.sleep(150)

    assert len(api.lists) == lists
    assert len(api.watches) == 2


async def test_a_version_that_is_forgotten_within_a_list_begins_it_again() -> None:
    api = Api()
    api.list_errors.append(ExpiredError(410, "Expired", "the continue parameter is too old"))
    audience = Silent()
    async with following(api, audience) as informer:
        await asyncio.sleep(1)
        assert informer.listed

    assert audience.refusals == 0


async def test_an_invalid_selector_is_reported_with_the_servers_message() -> None:
    api = Api()
    api.list_errors.extend([ApiError(400, "BadRequest", "unable to parse requirement")] * 10_000)
    audience = Silent()
    async with following(api, audience) as informer:
        await asyncio.sleep(HOUR)
        assert informer.refusal
        assert informer.refusal.invalid
        assert informer.refusal.message == "unable to parse requirement"

        assert informer.decided

    assert audience.refusals == 1
    assert api.requests <= HOUR / 30 + 1


@pytest.mark.parametrize(
    "between", [ApiError(503, "", "etcd"), ApiError(429, "", "busy"), OSError()]
)
async def test_a_refusal_lasts_once_there_was_no_other_answer_for_20_seconds(
    between: Exception,
) -> None:
    refusal, api, audience = ApiError(403, "Forbidden", "no roles yet"), Api(), Silent()
    api.list_errors.extend([refusal, *[between] * 5, *[refusal] * 1000])
    async with following(api, audience) as informer:
        while not informer.decided:
            await asyncio.sleep(0.1)
        first = api.lists[6]
        *_, before, last = (at - first for at in api.lists)
        assert before < 20 <= last
        api.list_errors.clear()
        await asyncio.sleep(11)
        assert informer.listed
        assert informer.refusal is None

    assert audience.refusals == 2


# ------------------------------------------------------------------------------- memory

PODS = 10_000


class Many(Api):
    """An API server of many pods, each decoded from its JSON."""

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        for text in pod_texts(PODS):
            take(json.loads(text))
        return "1"


async def test_a_pod_with_its_address_takes_less_than_a_kibibyte_and_a_new_list_no_more() -> None:
    api = Many(lived_seconds=10**9)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        async with following(api, Silent()) as informer:
            await asyncio.sleep(1)
            assert len(informer.pods_in("shop")) == PODS
            after, _ = tracemalloc.get_traced_memory()
            await informer._list()
            again, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (after - before) / PODS < 1024
    assert (again - before) / PODS < 1024
