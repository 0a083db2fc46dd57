"""An operator whose background task fails ends with an error, and leaves its agents as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Never, cast

import kopf
import pytest

from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_operator import main
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.election import Election
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.main import Options
from tests.unit.operator_.controlled import controller_of
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent
from tools.fakes.api import FakeApi
from tools.fakes.samples import pod_body, probe_body


class HeldLease:
    """The election of an operator that leads until it gives the Lease up."""

    def __init__(self) -> None:
        self.released = False

    async def keep(self) -> Never:
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")

    async def release(self) -> None:
        self.released = True


class Kopf:
    """kopf, with one probe; it runs until its flag is set."""

    def __init__(self) -> None:
        self.ended = False
        self.begin: Callable[[], Awaitable[None]] | None = None

    async def operator(self, *, stop_flag: asyncio.Event, **_: Any) -> None:
        assert self.begin
        await self.begin()
        await stop_flag.wait()
        self.ended = True


@pytest.fixture
def fake_kopf(monkeypatch: pytest.MonkeyPatch) -> Kopf:
    """Return what runs in place of kopf."""
    fake = Kopf()
    monkeypatch.setattr(kopf, "operator", fake.operator)
    return fake


@pytest.mark.parametrize("election", [None, HeldLease()])
async def test_a_failed_task_ends_the_operator_and_agents_keep_their_state(
    fake_kopf: Kopf,
    agent_tls: ClientTlsFiles,
    operator_tls: ClientTlsFiles,
    election: HeldLease | None,
) -> None:
    agent = FakeAgent(agent_tls)
    await agent.start()
    api = FakeApi(probes=[probe_body()])
    api.set(pod_body("a", labels={"app": "checkout"}))
    async with api.serve() as cluster:
        controller = controller_of(cluster, operator_tls, agents={"node-a": agent.address})

        async def begin() -> None:
            await controller.start()
            controller.add(probe_body())

        fake_kopf.begin = begin
        serving = asyncio.create_task(
            main._serve(
                Options(tls=operator_tls),
                cluster,
                controller,
                asyncio.Event(),
                cast(Election, election) if election else None,
            )
        )
        await until(lambda: agent.applied, what=lambda: agent.applied)
        applied = len(agent.applied)
        controller._tasks.spawn(fail(), "renewal")
        with pytest.raises(TaskFailedError, match="'renewal' has failed: RuntimeError: a bug"):
            await asyncio.wait_for(serving, 20)
    await agent.stop()

    assert fake_kopf.ended
    assert election is None or election.released
    assert len(agent.applied) == applied, "nothing was detached"


async def test_kopf_that_fails_ends_the_operator(
    fake_kopf: Kopf, operator_tls: ClientTlsFiles
) -> None:
    fake_kopf.begin = fail
    controller = controller_of(cast(Cluster, FakeApi()), operator_tls)
    with pytest.raises(RuntimeError, match="a bug"):
        await main._serve(
            Options(tls=operator_tls), cast(Cluster, None), controller, asyncio.Event()
        )


async def fail() -> None:
    """Fail as a bug would."""
    raise RuntimeError("a bug")
