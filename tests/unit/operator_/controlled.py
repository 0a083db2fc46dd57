"""A controller that runs, and the tasks of its probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from latencyprobe_operator.admission import NO_LIMITS, AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.garbage import GarbageCollector
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.leadership import Leadership
from latencyprobe_operator.metrics import OperatorMetrics
from tools.fakes.samples import Json

# An agent that nobody answers for.
AGENTS = {"node-a": "127.0.0.1:1"}
AGENT_NAMESPACE = "latencyprobe-system"


def controller_of(
    cluster: Cluster,
    tls: ClientTlsFiles,
    *,
    namespaces: Sequence[str] = (),
    agents: Mapping[str, str] = AGENTS,
    limits: AdminLimits = NO_LIMITS,
    collector: GarbageCollector | None = None,
    leadership: Leadership | None = None,
) -> Controller:
    """A controller that is yet to start."""
    return Controller(
        cluster,
        credentials=tls.credentials,
        agents=AgentSource(AGENT_NAMESPACE, "app=agent", 9345, agents),
        metrics=OperatorMetrics(),
        namespaces=namespaces,
        limits=limits,
        collector=collector,
        leadership=leadership,
    )


@asynccontextmanager
async def controlling(
    cluster: Cluster, tls: ClientTlsFiles, **options: Any
) -> AsyncIterator[Controller]:
    """A controller that runs, with the options of `controller_of`."""
    controller = controller_of(cluster, tls, **options)
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
