"""The operator's parts together: any number of probes have their statuses written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.metrics import OperatorMetrics
from tests.unit.operator_.waiting import until
from tools.fakes.api import FakeApi
from tools.fakes.samples import Json, pod_body, probe_body

# More than aiohttp's, and so kubernetes.aio's, pool of connections has.
MANY = 150

# An agent that nobody answers for.
AGENTS = {"node-a": "127.0.0.1:1"}
AGENT_NAMESPACE = "latencyprobe-system"


@asynccontextmanager
async def controlling(
    cluster: Cluster,
    tls: ClientTlsFiles,
    *,
    namespaces: Sequence[str] = (),
    agents: Mapping[str, str] = AGENTS,
) -> AsyncIterator[Controller]:
    """A controller that runs."""
    controller = Controller(
        cluster,
        credentials=tls.credentials,
        agents=AgentSource(AGENT_NAMESPACE, "app=agent", 9345, agents),
        metrics=OperatorMetrics(),
        namespaces=namespaces,
    )
    await controller.start()
    try:
        yield controller
    finally:
        await controller.close()


@asynccontextmanager
async def running(controller: Controller, probes: Sequence[Json]) -> AsyncIterator[None]:
    """The tasks of these probes."""
    tasks = [asyncio.create_task(controller.add(body).run()) for body in probes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def probe_in(namespace: str, name: str) -> Json:
    """A probe of the pods app=NAME."""
    body = probe_body(name)
    return {**body, "metadata": {**body["metadata"], "namespace": namespace}}


@pytest.mark.parametrize("namespaces", [MANY, 1])
@pytest.mark.parametrize("clusterwide", [True, False])
async def test_any_number_of_probes_have_their_statuses(
    operator_tls: ClientTlsFiles, *, namespaces: int, clusterwide: bool
) -> None:
    api = FakeApi()
    names = [f"team-{number % namespaces}" for number in range(MANY)]
    probes = [probe_in(name, f"probe-{number}") for number, name in enumerate(names)]
    for number, name in enumerate(names):
        labels = {"app": f"probe-{number}"}
        api.set(pod_body(f"pod-{number}", namespace=name, labels=labels))
    watched = () if clusterwide else names

    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=watched) as controller,
        running(controller, probes),
    ):
        await until(
            lambda: [status["targets"]["pods"] for status in api.statuses.values()] == [1] * MANY,
            what=lambda: f"{len(api.statuses)} statuses, {api.watching} watches",
        )
        expected = 1 if clusterwide else namespaces
        await until(lambda: api.watching == expected, what=lambda: api.asked)


async def test_agents_are_found_with_a_watch_of_their_namespace_alone(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi()
    api.set(pod_body("agent", namespace=AGENT_NAMESPACE, labels={"app": "agent"}))
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=["shop"], agents={}) as controller,
    ):
        await until(lambda: api.watching, what=lambda: api.asked)
        assert sum(controller._fleet.states().values()) == 1
        assert api.watches[0][0] == "app=agent"
        assert set(api.asked) == {AGENT_NAMESPACE}

        api.remove("uid-agent")
        await until(lambda: not sum(controller._fleet.states().values()), what=lambda: api.asked)


async def test_a_namespace_without_permission_is_told_in_the_status_of_its_probes(
    operator_tls: ClientTlsFiles,
) -> None:
    api = FakeApi(refuse_in={"cart": (403, "pods is forbidden in cart")})
    api.set(pod_body("a", labels={"app": "allowed"}))
    probes = [probe_in("shop", "allowed"), probe_in("cart", "refused")]
    async with (
        api.serve() as cluster,
        controlling(cluster, operator_tls, namespaces=["shop", "cart"]) as controller,
        running(controller, probes),
    ):
        await until(lambda: len(api.statuses) == 2, what=lambda: api.statuses)
        await until(
            lambda: api.statuses["allowed"]["targets"]["pods"] == 1, what=lambda: api.statuses
        )
        await until(
            lambda: ready(api, "refused")["reason"] == "PodsUnavailable",
            what=lambda: api.statuses,
        )
        assert ready(api, "refused")["message"] == "pods is forbidden in cart"


def ready(api: FakeApi, name: str) -> Json:
    """The condition Ready of a probe."""
    conditions: list[Json] = api.statuses[name]["conditions"]
    (condition,) = (each for each in conditions if each["type"] == "Ready")
    return condition
