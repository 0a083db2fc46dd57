"""kopf's first scan waits for an API server that does not serve LatencyProbes yet."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any, cast

import kopf
import pytest
from kopf._cogs.clients import api, errors, scanning
from kopf._cogs.structs.references import Insights
from kopf._core.reactor.observation import resource_observer

from latencyprobe_operator import main
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.handlers import _configure, build_registry
from latencyprobe_operator.kube.cluster import GROUP, PLURAL, VERSION, Cluster
from latencyprobe_operator.kube.kopf_scans import patient_scans
from latencyprobe_operator.main import Options
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json

LOOP = VirtualTimeLoop
GROUPS: Json = {
    "groups": [
        {
            "name": GROUP,
            "versions": [{"version": VERSION}],
            "preferredVersion": {"version": VERSION},
        }
    ]
}
RESOURCE: Json = {
    "name": PLURAL,
    "kind": "LatencyProbe",
    "singularName": "latencyprobe",
    "namespaced": True,
    "verbs": ["list", "watch", "patch"],
}


class StartingApi:
    """An API server that serves LatencyProbes from some time on, and until another."""

    def __init__(self, *, begin: float = 0.0, end: float = 10**6, listed_at: float = 0.0) -> None:
        self.served = (begin, end)
        self.listed_at = listed_at
        """From when on the list of groups has that of LatencyProbes."""
        self.scans = 0

    async def get(self, url: str, **_: Any) -> Json:
        """Return the groups, or the resources of one."""
        now = asyncio.get_running_loop().time()
        if url == "/api":
            return {"versions": []}
        if url == "/apis":
            self.scans += 1
            return GROUPS if now >= self.listed_at else {"groups": []}
        begin, end = self.served
        if not begin <= now < end:
            raise errors.APINotFoundError("404 page not found", status=404, headers={})
        return {"resources": [RESOURCE]}


async def scan() -> set[str]:
    """Scan the API as kopf does; return the names of the resources."""
    settings = kopf.OperatorSettings()
    _configure(settings, scan=True)
    found = await scanning.scan_resources(groups={GROUP}, settings=settings, logger=cast(Any, None))
    return {resource.plural for resource in found}


@pytest.mark.parametrize("listed_at", [0, 60])
async def test_the_first_scan_ends_once_probes_are_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, listed_at: float
) -> None:
    server = StartingApi(begin=60, listed_at=listed_at)
    monkeypatch.setattr(api, "get", server.get)
    with patient_scans(GROUP, PLURAL):
        assert await scan() == {PLURAL}

    assert 60 <= asyncio.get_running_loop().time() < 66
    assert 10 < server.scans < 60
    assert "does not serve latencyprobes.latencyprobe.io: it is starting" in caplog.messages[0]


async def test_a_first_scan_goes_on_after_an_answer_that_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = StartingApi()

    async def get(url: str, **options: Any) -> Json:
        if asyncio.get_running_loop().time() < 60:
            raise ValueError("a page of a proxy")
        return await server.get(url, **options)

    monkeypatch.setattr(api, "get", get)
    with patient_scans(GROUP, PLURAL):
        assert await scan() == {PLURAL}
    assert "cannot read the resources of the API" in caplog.messages[0]


async def test_a_later_scan_reports_that_the_crd_was_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "get", StartingApi(end=60).get)
    with patient_scans(GROUP, PLURAL):
        assert await scan() == {PLURAL}
        await asyncio.sleep(60)
        assert await scan() == set()
    assert asyncio.get_running_loop().time() < 61


@pytest.mark.parametrize("patient", [True, False])
async def test_kopf_serves_what_its_first_scan_has_found(
    monkeypatch: pytest.MonkeyPatch, *, patient: bool
) -> None:
    monkeypatch.setattr(api, "get", StartingApi(begin=60).get)
    settings, insights = kopf.OperatorSettings(), Insights()
    _configure(settings, scan=False)
    registry = build_registry(cast(Controller, None), cast(Cluster, None), scan=False)
    with patient_scans(GROUP, PLURAL) if patient else nullcontext():
        observing = asyncio.create_task(
            resource_observer(settings=settings, registry=registry, insights=insights)
        )
        await asyncio.sleep(120)
        observing.cancel()
        await asyncio.wait({observing})
    served = {resource.plural for resource in insights.watched_resources}
    assert served == ({PLURAL} if patient else set())


async def test_the_operator_waits_for_its_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "get", StartingApi(begin=60).get)
    found: list[set[str]] = []

    async def operator(**_: Any) -> None:
        found.append(await scan())

    monkeypatch.setattr(kopf, "operator", operator)
    impatient = scanning.scan_resources
    await main._run_kopf(Options(tls=cast(Any, None)), cast(Cluster, None), cast(Any, None))

    assert found == [{PLURAL}]
    assert scanning.scan_resources is impatient
