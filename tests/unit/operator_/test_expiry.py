"""Completed probes are deleted in time, and no others."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latencyprobe_operator.api.lifetime import Lifetime, lifetime_of
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.expiry import Expirations
from latencyprobe_operator.kube.cluster import ApiError, NotServedError
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import Json, probe_body

LOOP = VirtualTimeLoop
BEGAN = 1_800_000_000.0
TTL = 600


def now() -> float:
    """The wall clock, as even as the loop's."""
    return BEGAN + asyncio.get_running_loop().time()


class Server:
    """One LatencyProbe, with the API server's preconditions."""

    def __init__(self, *, ttl: int | None = TTL) -> None:
        self.body: Json | None = probe_body(duration="1m", generation=1)
        self.body["metadata"]["resourceVersion"] = "1"
        if ttl is not None:
            self.body["spec"]["ttlSecondsAfterFinished"] = ttl
        self.deleted_at: float | None = None
        self.attempts: list[float] = []
        self.failures: list[Exception] = []

    def change(self, change: Callable[[Json], object]) -> Json:
        """Write the object; returns what a watch then shows."""
        assert self.body
        change(self.body)
        self.body["metadata"]["resourceVersion"] = str(
            int(self.body["metadata"]["resourceVersion"]) + 1
        )
        return self.seen()

    def is_deleted(self) -> bool:
        """Whether it is gone."""
        return self.deleted_at is not None

    def seen(self) -> Json:
        """The object as a watch shows it."""
        return copy.deepcopy(self.body) or {}

    def complete(self) -> Json:
        """The operator's write at the end of the duration."""

        def write(body: Json) -> None:
            body["status"] = {
                "observedGeneration": body["metadata"]["generation"],
                "conditions": [
                    {
                        "type": "Complete",
                        "status": "True",
                        "lastTransitionTime": timestamp(now()),
                    }
                ],
            }

        return self.change(write)

    async def read_probe(self, namespace: str, name: str) -> Json:
        if self.body is None:
            raise ApiError(404, "NotFound", "gone")
        return self.seen()

    async def delete_probe(self, namespace: str, name: str, *, uid: str, version: str) -> None:
        self.attempts.append(now())
        if self.failures:
            raise self.failures.pop(0)
        if self.body is None:
            raise ApiError(404, "NotFound", "gone")
        metadata = self.body["metadata"]
        if (metadata["uid"], metadata["resourceVersion"]) != (uid, version):
            raise ApiError(409, "Conflict", "the object has been modified")
        self.body, self.deleted_at = None, now()


def edit(body: Json) -> None:
    """A user asks for a longer run."""
    body["spec"]["duration"] = "1h"
    body["metadata"]["generation"] += 1


def label(body: Json) -> None:
    """A user changes what is no spec."""
    body["metadata"]["labels"] = {"team": "shop"}


async def test_a_completed_probe_is_deleted_after_its_time() -> None:
    server = Server()
    expirations = Expirations(server, wall_clock=now)
    expirations.follow(server.seen())
    await asyncio.sleep(5 * TTL)
    assert not server.is_deleted(), "it has not completed"

    completed = now()
    expirations.follow(server.complete())
    await asyncio.sleep(TTL - 2)
    assert not server.is_deleted()
    await asyncio.sleep(4)

    assert server.deleted_at is not None
    assert server.deleted_at - completed == pytest.approx(TTL, abs=1.1)


@pytest.mark.parametrize("ttl", [None, 0])
async def test_without_a_time_to_live_it_stays_and_with_zero_it_goes_at_once(
    ttl: int | None,
) -> None:
    server = Server(ttl=ttl)
    Expirations(server, wall_clock=now).follow(server.complete())
    await asyncio.sleep(1 if ttl == 0 else 10**6)

    assert server.is_deleted() is (ttl == 0)


async def test_another_operator_goes_on_counting() -> None:
    server = Server()
    first = Expirations(server, wall_clock=now)
    first.follow(server.complete())
    await asyncio.sleep(TTL / 2)
    await first.close()
    await asyncio.sleep(TTL / 4)

    Expirations(server, wall_clock=now).follow(server.seen())
    await asyncio.sleep(TTL / 4 - 2)
    assert not server.is_deleted()
    await asyncio.sleep(4)
    assert server.is_deleted()


async def test_one_that_expired_without_an_operator_is_deleted_at_the_start() -> None:
    server = Server()
    server.complete()
    await asyncio.sleep(100 * TTL)

    Expirations(server, wall_clock=now).follow(server.seen())
    await asyncio.sleep(1)
    assert server.is_deleted()


async def test_an_edit_that_no_watch_has_shown_prevents_the_deletion() -> None:
    server = Server()
    expirations = Expirations(server, wall_clock=now)
    expirations.follow(server.complete())
    server.change(edit)
    await asyncio.sleep(100 * TTL)
    assert server.attempts
    assert not server.is_deleted()

    expirations.follow(server.seen())
    expirations.follow(server.complete())
    await asyncio.sleep(TTL + 2)
    assert server.is_deleted(), "after the longer run it goes"


async def test_a_change_that_no_watch_has_shown_only_delays_it() -> None:
    server = Server()
    Expirations(server, wall_clock=now).follow(server.complete())
    server.change(label)
    await asyncio.sleep(TTL + 10)

    assert len(server.attempts) == 2
    assert server.is_deleted()


async def test_a_later_probe_of_the_same_name_is_never_deleted() -> None:
    server = Server()
    Expirations(server, wall_clock=now).follow(server.complete())
    server.change(lambda body: body["metadata"].update(uid="another"))
    await asyncio.sleep(100 * TTL)

    assert server.attempts
    assert not server.is_deleted()


async def test_it_is_tried_again_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.failures = [
        ApiError(403, "Forbidden", "latencyprobes is forbidden"),
        ApiError(500, "InternalError", "etcd is away"),
        TimeoutError(),
        OSError("refused"),
    ] * 3
    with caplog.at_level(logging.INFO):
        Expirations(server, wall_clock=now).follow(server.complete())
        await asyncio.sleep(TTL + 3600)

    assert len(server.attempts) == 13
    assert server.is_deleted()
    warnings = [line.message for line in caplog.records if line.levelno == logging.WARNING]
    assert len(warnings) == 1, "the failures of one cause are one line"
    assert "shop/checkout: cannot delete the completed LatencyProbe: latencyprobes" in warnings[0]
    assert "shop/checkout: deleted" in caplog.text


async def test_only_the_leader_deletes() -> None:
    server, lease = Server(ttl=0), [0.0]
    Expirations(server, lambda: lease[0], wall_clock=now).follow(server.complete())
    await asyncio.sleep(3600)
    assert server.attempts == []

    lease[0] = 10.0
    await asyncio.sleep(120)
    assert server.is_deleted()


async def test_one_that_is_deleted_by_others_is_forgotten() -> None:
    server = Server()
    expirations = Expirations(server, wall_clock=now)
    expirations.follow(server.complete())
    expirations.forget(server.seen()["metadata"]["uid"])
    await asyncio.sleep(100 * TTL)
    assert server.attempts == []

    expirations.follow(server.seen())
    expirations.follow(
        server.change(lambda body: body["metadata"].update(deletionTimestamp=timestamp(now())))
    )
    await asyncio.sleep(100 * TTL)
    assert server.attempts == []


@given(
    completed=st.floats(0, 4e9),
    ttl_s=st.integers(0, 2**31 - 1),
    wall=st.floats(0, 4e9),
)
def test_no_clock_makes_a_lifetime_negative_or_longer_than_the_whole(
    completed: float, ttl_s: int, wall: float
) -> None:
    rest_s = Lifetime(completed, ttl_s).remaining_s(wall)

    assert 0 <= rest_s <= ttl_s


STEPS: dict[str, Callable[[Server], Json]] = {
    "edit": lambda server: server.change(edit),
    "label": lambda server: server.change(label),
    "complete": lambda server: server.complete(),
}


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.booleans(), st.integers(0, 2 * TTL)),
        max_size=8,
    )
)
def test_only_a_complete_probe_is_deleted_though_a_watch_misses_changes(
    steps: list[tuple[str, bool, int]],
) -> None:
    async def play() -> None:
        server = Server()
        expirations = Expirations(server, wall_clock=now)
        complete_since: float | None = None
        for name, is_shown, pause_s in steps:
            body = STEPS[name](server)
            if name == "edit":
                complete_since = None
            elif name == "complete":
                complete_since = now()
            if is_shown:
                expirations.follow(body)
            await asyncio.sleep(pause_s)
            if server.deleted_at is not None:
                assert complete_since is not None
                assert server.deleted_at >= complete_since + TTL - 1
                return
        expirations.follow(server.seen())
        await asyncio.sleep(TTL + 100)
        assert server.is_deleted() is (complete_since is not None)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(play())


def test_a_status_of_an_earlier_spec_says_nothing() -> None:
    body: Any = probe_body(duration="1m", ttlSecondsAfterFinished=5, generation=2)
    condition = {"type": "Complete", "status": "True", "lastTransitionTime": timestamp(BEGAN)}
    body["status"] = {"observedGeneration": 1, "conditions": [condition]}
    assert lifetime_of(body) is None

    body["status"]["observedGeneration"] = 2
    assert lifetime_of(body) == Lifetime(BEGAN, 5)
    condition["status"] = "False"
    assert lifetime_of(body) is None


async def test_a_server_that_does_not_serve_probes_yet_is_asked_again() -> None:
    server = Server()
    server.failures = [NotServedError(404, "", "404 page not found")] * 2
    Expirations(server, wall_clock=now).follow(server.complete())
    await asyncio.sleep(TTL + 60)

    assert server.is_deleted()
    assert len(server.attempts) == 3
