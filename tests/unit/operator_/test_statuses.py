"""Statuses are written by the leader alone, and to the version that they were made from."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.kube import leading
from latencyprobe_operator.kube.leading import NotLeadingError
from latencyprobe_operator.kube.statuses import StatusConflictError, Statuses
from latencyprobe_operator.leadership import Leadership, LeaseTiming
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.writer import StatusWriter
from tests.unit.operator_.crd_schema import misfits, read_schema
from tests.unit.operator_.shared_lease import SetClock, taken_by
from tools.fakes.api import FakeApi, apply_merge_patch

TIMING = LeaseTiming()
KEY = ProbeKey(uid="uid-checkout", namespace="shop", name="checkout")


def leader(clock: SetClock) -> Leadership:
    """An operator that has just taken the Lease."""
    leadership = Leadership("a", TIMING, clock)
    leadership.hold(taken_by("a"), sent_at=clock.now)
    return leadership


def writer_of(
    statuses: Statuses, version: str = "7", metrics: OperatorMetrics | None = None
) -> StatusWriter:
    """The writer of a probe of this version."""
    body = {"metadata": {"uid": KEY.uid, "resourceVersion": version}, "status": {"phase": "Old"}}
    return StatusWriter(
        KEY, body, patch_status=statuses.patch, metrics=metrics or OperatorMetrics()
    )


async def test_a_leader_that_was_frozen_between_decision_and_write_writes_nothing() -> None:
    api, clock = FakeApi(), SetClock()
    async with api.serve() as cluster:
        leadership = leader(clock)
        writer = writer_of(Statuses(cluster, leadership.remaining_s))
        document = {"phase": "Running"}
        assert writer.turns(document), "decided to write"
        assert leadership.remaining_s() > 0

        clock.now += TIMING.duration_s  # frozen here
        delay_s = await writer.write(document)

        assert api.patches == []
        assert delay_s, "it tries again: the Lease may still be its own"


class Unanswering(FakeApi):
    """An API server that answers no patch."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_to_patch = asyncio.Event()

    async def _patch(self, request: web.Request) -> web.Response:
        self.asked_to_patch.set()
        await asyncio.Event().wait()
        raise AssertionError(request)


async def test_a_request_is_abandoned_when_the_lease_ends() -> None:
    api = Unanswering()
    async with api.serve() as cluster:
        statuses = Statuses(cluster, lambda: 0.2)
        writing = asyncio.create_task(statuses.patch("shop", "checkout", {"status": {}}))
        await api.asked_to_patch.wait()

        await asyncio.wait({writing}, timeout=10)

        assert isinstance(writing.exception(), TimeoutError)


async def test_a_request_is_abandoned_after_a_machine_was_suspended_beyond_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api, clock = Unanswering(), SetClock()
    # The loop's clock stands still meanwhile.
    monkeypatch.setattr(leading, "boot_clock", lambda: clock.now)
    async with api.serve() as cluster:
        statuses = Statuses(cluster, lambda: 3600)
        writing = asyncio.create_task(statuses.patch("shop", "checkout", {"status": {}}))
        await api.asked_to_patch.wait()

        clock.now += 3600
        await asyncio.wait({writing}, timeout=10)

        assert writing.done()
        assert isinstance(writing.exception(), TimeoutError)


@pytest.mark.parametrize(
    ("deposed", "why"),
    [
        (lambda leadership, _: leadership.lose(), "lost"),
        (lambda _, clock: setattr(clock, "now", clock.now + 10), "past the renew deadline"),
        (lambda _, clock: setattr(clock, "now", clock.now + 3600), "thawed after an hour"),
    ],
)
async def test_no_request_begins_without_the_lease(
    deposed: Callable[[Leadership, SetClock], None], why: str
) -> None:
    api, clock = FakeApi(), SetClock()
    async with api.serve() as cluster:
        leadership = leader(clock)
        deposed(leadership, clock)

        with pytest.raises(NotLeadingError):
            await Statuses(cluster, leadership.remaining_s).patch("shop", "checkout", {})
        assert api.patches == [], why


async def test_a_thawed_leader_meets_the_version_that_the_next_one_has_written() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        old = writer_of(Statuses(cluster, lambda: math.inf))
        assert await old.write({"phase": "Running"}) is None
        api.change_status("checkout", {"phase": "Degraded", "by": "the next leader"})

        assert await old.write({"phase": "Pending"}), "it decides again"

        assert api.statuses["checkout"] == {"phase": "Degraded", "by": "the next leader"}
        assert old.previous == {"phase": "Degraded", "by": "the next leader"}


async def test_after_a_conflict_the_next_patch_is_made_from_the_stored_status() -> None:
    api, metrics = FakeApi(), OperatorMetrics()
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster), metrics=metrics)
        await writer.write({"phase": "Running", "summary": {"p99": "1ms"}})
        api.change_status("checkout", {"phase": "Pending"})
        document = {"phase": "Running", "summary": {"p99": "2ms"}}
        assert await writer.write(document)

        assert await writer.write(document) is None

        assert api.statuses["checkout"] == document
        assert api.patches[-1]["metadata"] == {
            "uid": KEY.uid,
            "resourceVersion": str(api.version - 1),
        }
    failures = "latencyprobe_operator_status_write_failures_total"
    assert metrics.registry.get_sample_value(failures) == 0


async def test_an_event_of_the_watch_saves_the_conflict() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster))
        await writer.write({"phase": "Running"})
        api.change_status("checkout", dict(api.statuses["checkout"]))
        metadata = {"resourceVersion": api.status_versions["checkout"]}

        writer.see({"metadata": metadata, "status": api.statuses["checkout"]})
        writer.see({"metadata": {"resourceVersion": "2"}, "status": {"phase": "Old"}})

        assert await writer.write({"phase": "Degraded"}) is None


async def test_a_deleted_probe_is_left() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        statuses = Statuses(cluster)
        await writer_of(statuses).write({"phase": "Running"})
        writer = writer_of(statuses, version="1")
        api.change_status("checkout", {})

        with pytest.raises(StatusConflictError):
            await statuses.patch(
                "shop", "checkout", {"metadata": {"resourceVersion": "1"}, "status": {}}
            )
        del api.statuses["checkout"]
        assert await writer.write({"phase": "Running"}) is None


async def test_a_server_that_does_not_serve_probes_yet_has_not_deleted_the_probe() -> None:
    api = FakeApi(starting=True)
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster))
        assert await writer.write({"phase": "Running"}), "it tries again"

        api.starting = False
        assert await writer.write({"phase": "Running"}) is None
    assert api.statuses["checkout"] == {"phase": "Running"}


async def test_an_api_server_that_is_away_costs_a_probe_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: object) -> dict[str, Any]:
        raise OSError("refused")

    body = {"metadata": {"uid": KEY.uid}}
    writer = StatusWriter(KEY, body, patch_status=fail, metrics=OperatorMetrics())
    for _ in range(20):
        assert await writer.write({"phase": "Running"}), "it tries again"

    (record,) = caplog.records
    assert "cannot write the status: refused; next attempt in" in record.getMessage()


class StrictApi(FakeApi):
    """An API server that holds statuses to the CRD, and names the fields that it refuses."""

    def __init__(self, spelled: Callable[[str], str] = str) -> None:
        super().__init__()
        self._spelled = spelled

    async def _patch(self, request: web.Request) -> web.Response:
        body = await request.json()
        before = self.statuses.get(request.match_info["name"], {})
        found = list(misfits(apply_merge_patch(before, body["status"]), SCHEMA))
        if not found:
            return await super()._patch(request)
        self.patches.append(body)
        causes = [{"field": self._spelled(each.partition(":")[0])} for each in found]
        status = {"message": f"invalid: {found[0]}", "reason": "Invalid"}
        return web.json_response({**status, "details": {"causes": causes}}, status=422)


SCHEMA = read_schema()["properties"]["status"]
REFUSED = "latencyprobe_operator_status_write_failures_total"


def row(name: str, share: int = 50) -> dict[str, Any]:
    """A pod in a status, with this share in its verdict."""
    return {"name": name, "verdict": {"sharePercent": share}}


def status(*pods: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A status with these pods."""
    return {
        "phase": "Running",
        "pods": list(pods),
        "omittedPods": 0,
        "nodes": [{"name": "node-a"}],
        "omittedNodes": 0,
        **parts,
    }


@pytest.mark.parametrize(
    "spelled", [str, lambda field: field.replace("[", ".").replace("]", "")], ids=["[0]", ".0"]
)
async def test_a_row_that_the_api_server_refuses_holds_up_no_other(
    caplog: pytest.LogCaptureFixture, spelled: Callable[[str], str]
) -> None:
    api, metrics = StrictApi(spelled), OperatorMetrics()
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster), metrics=metrics)
        with caplog.at_level(logging.WARNING):
            for share in (101, 102, 103):
                document = status(row("bad", share), row("b", share - 100), row("worse", 2**31))
                assert await writer.write(document) is None, "it does not try the same again"

                assert api.statuses["checkout"] == status(row("b", share - 100), omittedPods=2)

    assert writer.last_write
    assert metrics.registry.get_sample_value(REFUSED) == 3
    (line,) = (record.getMessage() for record in caplog.records)
    assert "shop/checkout" in line
    assert "status.pods" in line
    assert "sharePercent" in line


async def test_rows_are_left_out_if_the_api_server_does_not_say_which_it_refuses() -> None:
    api = StrictApi(lambda _: "")
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster))
        assert await writer.write(status(row("bad", 101), row("b"))) is None

        assert api.statuses["checkout"] == status(omittedPods=2, omittedNodes=1, nodes=[])


async def test_a_status_that_is_refused_as_a_whole_is_followed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = StrictApi()
    async with api.serve() as cluster:
        writer = writer_of(Statuses(cluster))
        with caplog.at_level(logging.WARNING):
            assert await writer.write(status(summary={"p50": 1})) is None
            assert await writer.write(status(summary={"p50": 2})) is None
            assert "checkout" not in api.statuses
            assert await writer.write(status(summary={"p50": "1ms"})) is None

        assert api.statuses["checkout"] == status(summary={"p50": "1ms"})
    assert len(caplog.records) == 1
    assert "summary.p50" in caplog.text
