"""A new leader connects to agents once their states are complete: else they would detach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.kube.cluster import ApiError, Cluster, NotServedError, WatchEvent
from latencyprobe_operator.kube.informer import Informer
from latencyprobe_operator.metrics import OperatorMetrics
from tests.unit.operator_.controlled import AGENT_NAMESPACE, controller_of
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json, pod_body, probe_body, target_id

LOOP = VirtualTimeLoop
NEVER_READ = ClientTlsFiles(Path("ca.crt"), Path("tls.crt"), Path("tls.key"))


class SlowApi:
    """An API server whose lists of pods take some time, or are refused."""

    def __init__(self, *, pods_s: float = 0.0, agents_s: float = 0.0) -> None:
        self.probes = [probe_body()]
        self.seconds = {None: pods_s, AGENT_NAMESPACE: agents_s}
        self.refused_until = 0.0
        self.busy_until = 0.0
        self.unserved = (0.0, 0.0)
        """The times between which it answers as without a CRD."""
        self.failure: Exception | None = None

    async def list_probes(self, namespace: str | None) -> list[Json]:
        """List the probes, unless the server is busy, starts, or has a bug."""
        if self.failure:
            raise self.failure
        begin, end = self.unserved
        if begin <= asyncio.get_running_loop().time() < end:
            raise NotServedError(404, "", "404 page not found")
        if asyncio.get_running_loop().time() < self.busy_until:
            raise ApiError(429, "TooManyRequests", "try again later")
        return self.probes

    async def list_pods(
        self, namespace: str | None, selector: str, take: Callable[[Json], None]
    ) -> str:
        """List the pods, once this long has passed."""
        if namespace is None and asyncio.get_running_loop().time() < self.refused_until:
            raise ApiError(403, "Forbidden", "the roles are not known yet")
        await asyncio.sleep(self.seconds[namespace])
        if namespace is None:
            take(pod_body("a", labels={"app": "checkout"}))
        return "1"

    async def watch_pods(
        self, namespace: str | None, selector: str, *, since: str
    ) -> AsyncIterator[WatchEvent]:
        """Watch nothing happen."""
        await asyncio.sleep(10**6)
        for event in list[WatchEvent]():
            yield event


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which the agents were connected to; nothing else happens then."""
    times: list[float] = []
    monkeypatch.setattr(Fleet, "open", lambda _: times.append(asyncio.get_running_loop().time()))
    return times


@asynccontextmanager
async def leading(api: SlowApi) -> AsyncIterator[Controller]:
    """A new leader that has the probe."""
    controller = controller_of(cast(Cluster, api), NEVER_READ, agents={})
    await controller.start()
    try:
        controller.add(probe_body())
        yield controller
    finally:
        await controller.close()


def asked(controller: Controller) -> list[str]:
    """The targets in the state of the node."""
    return [each.id for probe in controller.desired.of_node("node-a") for each in probe.targets]


@pytest.mark.parametrize("seconds", [1, 25, 100])
async def test_agents_are_sent_nothing_while_a_long_list_of_pods_arrives(
    opened: list[float], seconds: float
) -> None:
    async with leading(SlowApi(pods_s=seconds)) as controller:
        while not opened:
            await asyncio.sleep(0.1)
        assert asked(controller) == [target_id("a")]
    assert opened == [pytest.approx(seconds, abs=1)]


async def test_agents_are_sent_nothing_while_a_server_that_starts_refuses_all_requests(
    opened: list[float],
) -> None:
    api = SlowApi()
    api.refused_until = 15
    async with leading(api) as controller:
        await asyncio.sleep(40)
        assert asked(controller) == [target_id("a")]
    assert len(opened) == 1
    assert 15 <= opened[0] < 26


async def test_pods_that_are_refused_for_long_are_not_waited_for(opened: list[float]) -> None:
    api = SlowApi()
    api.refused_until = 10**6
    async with leading(api):
        await asyncio.sleep(40)
    assert len(opened) == 1
    assert 20 <= opened[0] < 31


async def test_a_list_that_never_ends_is_waited_for_less_long_than_agents_go_on(
    opened: list[float],
) -> None:
    async with leading(SlowApi(pods_s=10**6)):
        await asyncio.sleep(300)
    assert opened == [pytest.approx(200, abs=1)]


async def test_a_busy_server_does_not_prolong_the_wait_for_pods(opened: list[float]) -> None:
    api = SlowApi(pods_s=10**6)
    api.busy_until = 90
    async with leading(api):
        await asyncio.sleep(300)
    assert opened == [pytest.approx(200, abs=1)]


async def test_agents_are_sent_nothing_while_no_list_of_probes_arrives(
    opened: list[float],
) -> None:
    api = SlowApi()
    api.busy_until = 220
    async with leading(api) as controller:
        await asyncio.sleep(215)
        assert opened == []
        await asyncio.sleep(30)
        assert asked(controller) == [target_id("a")]
    assert opened == [pytest.approx(220, abs=6)]


async def test_the_list_of_the_agents_is_waited_for(opened: list[float]) -> None:
    async with leading(SlowApi(agents_s=45)):
        await asyncio.sleep(60)
    assert opened == [pytest.approx(45, abs=1)]


async def test_a_probe_that_is_deleted_before_it_is_known_is_not_waited_for(
    opened: list[float],
) -> None:
    api = SlowApi()
    api.probes = [probe_body(), probe_body("deleted")]
    async with leading(api):
        await asyncio.sleep(25)
        assert opened == []
        api.probes = [probe_body()]
        await asyncio.sleep(30)
    assert opened == [pytest.approx(30, abs=1)]


async def test_a_server_that_does_not_serve_probes_yet_detaches_nothing(
    opened: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    api = SlowApi()
    api.unserved = (0, 60)
    async with leading(api) as controller:
        await asyncio.sleep(55)
        assert opened == []
        await asyncio.sleep(20)
        assert asked(controller) == [target_id("a")]
    assert opened == [pytest.approx(60, abs=6)]
    assert "does not serve LatencyProbes: it is starting, or the CRD is not" in caplog.text
    assert len(caplog.messages) == 2, "a line each half minute"


async def test_a_server_of_several_that_starts_later_does_not_end_the_wait_for_pods(
    opened: list[float],
) -> None:
    api = SlowApi(pods_s=100)
    api.unserved = (5, 60)
    async with leading(api) as controller:
        await asyncio.sleep(120)
        assert asked(controller) == [target_id("a")]
    assert opened == [pytest.approx(100, abs=1)]


async def test_without_a_crd_agents_are_connected_to_before_their_lease_ends(
    opened: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    api = SlowApi()
    api.unserved = (0, 10**6)
    async with leading(api):
        await asyncio.sleep(300)
    assert opened == [pytest.approx(200, abs=6)]
    assert "no CRD exists" in caplog.text


@pytest.mark.parametrize("error", [json.JSONDecodeError("Expecting value", "<html>", 0)])
async def test_an_answer_that_cannot_be_read_is_asked_for_again(
    opened: list[float], error: Exception
) -> None:
    api = SlowApi()
    api.failure = error
    async with leading(api):
        await asyncio.sleep(20)
        assert opened == []
        api.failure = None
        await asyncio.sleep(10)
        assert len(opened) == 1


async def test_a_start_that_fails_is_a_failure_of_the_operator_and_detaches_nothing(
    opened: list[float],
) -> None:
    api = SlowApi()
    api.failure = RuntimeError("a bug")
    async with leading(api) as controller:
        with pytest.raises(TaskFailedError, match="'warm-up' has failed: RuntimeError: a bug"):
            await controller.failure()
    assert opened == []


@pytest.mark.parametrize("namespace", [None, AGENT_NAMESPACE])
async def test_pods_that_cannot_be_followed_any_more_are_a_failure_of_the_operator(
    opened: list[float], monkeypatch: pytest.MonkeyPatch, namespace: str | None
) -> None:
    async def fail(informer: Informer[Any]) -> None:
        if informer.scope.namespace == namespace:
            raise RuntimeError("a bug")
        await asyncio.sleep(10**6)

    monkeypatch.setattr(Informer, "run", fail)
    async with leading(SlowApi()) as controller:
        with pytest.raises(TaskFailedError, match=r"pods of .* has failed: RuntimeError: a bug"):
            await controller.failure()
    assert opened == []


async def test_an_operator_without_a_failure_goes_on(opened: list[float]) -> None:
    async with leading(SlowApi()) as controller:
        failure = asyncio.ensure_future(controller.failure())
        await asyncio.sleep(3600)
        assert not failure.done()
        failure.cancel()
    assert len(opened) == 1


async def test_work_beside_the_main_that_fails_ends_no_operator(
    opened: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[float] = []

    def fail(*_: object) -> None:
        calls.append(asyncio.get_running_loop().time())
        raise RuntimeError("a bug")

    monkeypatch.setattr(OperatorMetrics, "set_gauges", fail)
    async with leading(SlowApi()) as controller:
        failure = asyncio.ensure_future(controller.failure())
        await asyncio.sleep(100)
        assert not failure.done()
        failure.cancel()
    assert opened
    assert len(calls) == pytest.approx(20, abs=1)
    lines = [line for line in caplog.messages if "gauges: unexpected error" in line]
    assert len(lines) == 1
