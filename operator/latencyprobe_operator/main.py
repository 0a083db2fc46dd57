"""The operator's process: builds the parts, and runs kopf until a signal ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import kopf

from latencyprobe.process.http_server import health_page, metrics_page, served
from latencyprobe.process.listening import ListenAddress
from latencyprobe_operator.admission import NO_LIMITS, AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.source import AgentSource
from latencyprobe_operator.controller import Controller
from latencyprobe_operator.handlers import build_registry
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.metrics import OperatorMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the operator. `latencyprobe operator --help` explains each."""

    tls: ClientTlsFiles
    kubeconfig: Path | None = None
    namespace: str = "latencyprobe-system"
    agent_selector: str = "app.kubernetes.io/name=latencyprobe-agent"
    agent_port: int = 9345
    agents: Mapping[str, str] = field(default_factory=dict)
    """Addresses by node; if there are any, the DaemonSet is not used."""
    watch_namespaces: tuple[str, ...] = ()
    metrics_address: ListenAddress | None = None
    health_address: ListenAddress | None = None
    limits: AdminLimits = NO_LIMITS


def run(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    asyncio.run(operate(options))


async def operate(options: Options) -> None:
    """Run the operator in a running event loop."""
    metrics = OperatorMetrics()
    async with served(options.metrics_address, {"/metrics": metrics_page(metrics.registry)}):
        cluster = await Cluster.connect(options.kubeconfig)
        try:
            await _serve_probes(options, cluster, metrics)
        finally:
            await cluster.close()


async def _serve_probes(options: Options, cluster: Cluster, metrics: OperatorMetrics) -> None:
    controller = Controller(
        cluster,
        credentials=options.tls.credentials,
        agents=AgentSource(
            options.namespace, options.agent_selector, options.agent_port, options.agents
        ),
        metrics=metrics,
        namespaces=options.watch_namespaces,
        limits=options.limits,
    )
    scan = not options.watch_namespaces
    # Served by the event loop that does the work: it is healthy as long as it responds.
    async with served(options.health_address, {"/healthz": health_page()}):
        await kopf.operator(
            registry=build_registry(controller, cluster, scan=scan),
            clusterwide=scan,
            namespaces=options.watch_namespaces,
            standalone=True,
        )
