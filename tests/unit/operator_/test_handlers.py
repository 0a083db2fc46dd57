"""kopf's handlers: what kopf keeps of a LatencyProbe, and what the controller gets of it."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Never, cast

import kopf
from kopf._core.actions.lifecycles import all_at_once
from kopf._core.engines.indexing import OperatorIndexers
from kopf._core.reactor.inventory import ResourceMemories
from kopf._core.reactor.processing import process_resource_event

from latencyprobe_operator.api.spec import probe_key
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.handlers import _configure, build_registry
from latencyprobe_operator.kube.cluster import GROUP, PLURAL, VERSION, Cluster
from latencyprobe_operator.probes.document import MAX_BYTES
from latencyprobe_operator.release import FINALIZER
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tests.unit.operator_.waiting import until
from tools.fakes.samples import Json, probe_body

LOOP = VirtualTimeLoop

PROBES = 10
STATUS: Json = {
    "phase": "Running",
    "startTime": "2026-01-01T00:00:00Z",
    "pods": [{f"figure{number}": number * 1000 for number in range(200)} for _ in range(20)],
}
# kopf's tasks take half of it. As Python objects, the rows take 300,000.
MOST_BYTES_OF_A_PROBE = 60_000


class _Probe:
    """A probe whose status stands in the API server."""

    def __init__(self, status: Json) -> None:
        self.status = status
        self.stopped = asyncio.Event()
        self.failed = asyncio.Event()

    async def run(self) -> None:
        """Run until the test has it fail."""
        await self.failed.wait()
        raise RuntimeError("as the test wants it")


class _Controller:
    """A controller that keeps little of what it gets."""

    def __init__(self) -> None:
        self.added: list[tuple[str | None, str | None, int]] = []
        """Of each probe that was added: the version, the begin of measuring, the rows."""
        self.updated: list[int] = []
        """Of each object that came in: the rows."""
        self.probes: dict[str, _Probe] = {}

    def add(self, body: Mapping[str, Any]) -> _Probe:
        status = body["status"]
        version, rows = body["metadata"].get("resourceVersion"), len(status.get("pods", ()))
        self.added.append((version, status.get("startTime"), rows))
        probe = self.probes[probe_key(body).uid] = _Probe({"startTime": "as written", "pods": []})
        return probe

    def serves(self, body: Mapping[str, Any]) -> bool:
        return probe_key(body).uid in self.probes

    def update(self, body: Mapping[str, Any]) -> None:
        self.updated.append(len(body["status"]["pods"]))

    def abandon(self, probe: _Probe) -> None:
        self.probes = {uid: each for uid, each in self.probes.items() if each is not probe}


class _Kopf:
    """The part of kopf that takes in an event of the API server."""

    def __init__(self, controller: _Controller) -> None:
        self.memories = ResourceMemories()
        settings = kopf.OperatorSettings()
        _configure(settings, scan=False)
        served = cast(Controller, controller)
        self.take = partial(
            process_resource_event,
            lifecycle=all_at_once,
            indexers=OperatorIndexers(),
            registry=build_registry(served, cast(Cluster, None), scan=False),
            settings=settings,
            memories=self.memories,
            memobase=cast(Any, kopf.Memo()),
            resource=kopf.Resource(GROUP, VERSION, PLURAL),
            event_queue=asyncio.Queue(),
        )


@asynccontextmanager
async def kopf_of(controller: _Controller) -> AsyncIterator[_Kopf]:
    """Yield kopf with the handlers of this controller; end its tasks."""
    taking = _Kopf(controller)
    yield taking
    daemons = [
        daemon.task
        for memory in taking.memories.iter_all_daemon_memories()
        for daemon in memory.running_daemons.values()
    ]
    for task in daemons:
        task.cancel()
    await asyncio.gather(*daemons, return_exceptions=True)


def event(number: int = 0, version: int = 1, kind: str | None = None) -> str:
    """Return an event of a probe, in the API server's JSON."""
    body = probe_body(f"probe-{number}")
    body["metadata"] |= {"resourceVersion": str(version), "finalizers": [FINALIZER]}
    return json.dumps({"type": kind, "object": {**body, "status": STATUS}})


async def bytes_kept_above(before: int) -> int:
    """Return what is kept, once kopf's workers no longer hold the last events."""
    kept = _bytes_kept() - before
    for _ in range(20):  # not until a deadline: in virtual time that is thousands of collections
        if kept < PROBES * MOST_BYTES_OF_A_PROBE:
            break
        await asyncio.sleep(1)
        kept = _bytes_kept() - before
    return kept


def _bytes_kept() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_the_statuses_of_objects_are_not_kept() -> None:
    controller = _Controller()
    listed = [event(number) for number in range(PROBES)]
    changed = [event(number, 2, "MODIFIED") for number in range(PROBES)]
    async with kopf_of(controller) as kopf_:
        await kopf_.take(raw_event=json.loads(event(PROBES)))
        await until(lambda: controller.added, what=lambda: "no probe")
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for text in listed:
                await kopf_.take(raw_event=json.loads(text))
            await until(lambda: len(controller.added) > PROBES, what=lambda: controller.added)
            for text in changed:
                await kopf_.take(raw_event=json.loads(text))
            assert await bytes_kept_above(before) < PROBES * MOST_BYTES_OF_A_PROBE
        finally:
            tracemalloc.stop()

    assert controller.updated == [20] * (1 + 2 * PROBES)


async def test_a_probe_takes_over_the_status_of_its_object_when_it_begins() -> None:
    controller = _Controller()
    async with kopf_of(controller) as kopf_:
        await kopf_.take(raw_event=json.loads(event()))
        await until(lambda: controller.added, what=lambda: "no probe")

    assert controller.added == [("1", "2026-01-01T00:00:00Z", 20)]


async def test_a_probe_that_failed_begins_again_with_the_status_that_it_wrote() -> None:
    controller = _Controller()
    async with kopf_of(controller) as kopf_:
        await kopf_.take(raw_event=json.loads(event()))
        await until(lambda: controller.probes, what=lambda: "no probe")
        await kopf_.take(raw_event=json.loads(event(version=2, kind="MODIFIED")))
        (probe,) = controller.probes.values()
        probe.failed.set()
        await until(lambda: len(controller.added) == 2, what=lambda: controller.added)

    assert controller.added == [("1", "2026-01-01T00:00:00Z", 20), ("2", "as written", 0)]


async def test_an_event_between_a_failure_and_the_next_begin_brings_the_status() -> None:
    controller = _Controller()
    async with kopf_of(controller) as kopf_:
        await kopf_.take(raw_event=json.loads(event()))
        await until(lambda: controller.probes, what=lambda: "no probe")
        (probe,) = controller.probes.values()
        probe.failed.set()
        await until(lambda: not controller.probes, what=lambda: controller.added)
        await kopf_.take(raw_event=json.loads(event(version=2, kind="MODIFIED")))
        await until(lambda: len(controller.added) == 2, what=lambda: controller.added)

    assert controller.added[1] == ("2", "2026-01-01T00:00:00Z", 20)


def test_kopf_lists_few_statuses_at_a_time() -> None:
    settings = kopf.OperatorSettings()
    _configure(settings, scan=True)

    assert settings.watching.chunk_size
    assert settings.watching.chunk_size * MAX_BYTES <= 5 << 20


async def test_kopf_copies_no_status() -> None:
    class Uncopied(dict[str, Any]):
        def __deepcopy__(self, _: object) -> Never:
            raise AssertionError("copied")

    controller = _Controller()
    async with kopf_of(controller) as kopf_:
        for kind in (None, "MODIFIED"):
            raw = json.loads(event(kind=kind))
            raw["object"]["status"] = Uncopied(STATUS)
            await kopf_.take(raw_event=raw, no_throttling=True)

    assert controller.updated == [20, 20]
