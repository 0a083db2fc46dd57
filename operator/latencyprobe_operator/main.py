"""The operator's process: builds the parts, and runs kopf until a signal ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import kopf
import prometheus_client

from latencyprobe_operator.agents.fleet import TlsFiles
from latencyprobe_operator.controller import AgentSource, Controller
from latencyprobe_operator.handlers import build_registry
from latencyprobe_operator.kube.cluster import Cluster
from latencyprobe_operator.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the operator runs. `latencyprobe operator --help` tells what each means."""

    tls: TlsFiles
    kubeconfig: Path | None = None
    namespace: str = "latencyprobe-system"
    agent_selector: str = "app.kubernetes.io/name=latencyprobe-agent"
    agent_port: int = 9345
    agents: Mapping[str, str] = field(default_factory=dict)
    """Addresses by node; where there are any, the DaemonSet is not looked for."""
    watch_namespaces: tuple[str, ...] = ()
    serve_on: str = "0.0.0.0"  # noqa: S104 - Prometheus and the kubelet ask from outside of the pod
    metrics_port: int | None = None
    health_port: int | None = None


def run(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    asyncio.run(operate(options))


async def operate(options: Options) -> None:
    """The operator, in a running event loop."""
    metrics = Metrics()
    if options.metrics_port is not None:
        prometheus_client.start_http_server(
            options.metrics_port, addr=options.serve_on, registry=metrics.registry
        )
    cluster = await Cluster.connect(options.kubeconfig)
    try:
        controller = Controller(
            cluster,
            credentials=options.tls.credentials,
            agents=AgentSource(
                options.namespace, options.agent_selector, options.agent_port, options.agents
            ),
            metrics=metrics,
            namespaces=options.watch_namespaces,
        )
        scan = not options.watch_namespaces
        await kopf.operator(
            registry=build_registry(controller, cluster, scan=scan),
            clusterwide=scan,
            namespaces=options.watch_namespaces,
            standalone=True,
            liveness_endpoint=liveness_endpoint(options),
        )
    finally:
        await cluster.close()


def liveness_endpoint(options: Options) -> str | None:
    """Where kopf is to answer the kubelet, as it takes it; None for nowhere."""
    if options.health_port is None:
        return None
    host = f"[{options.serve_on}]" if ":" in options.serve_on else options.serve_on
    return f"http://{host}:{options.health_port}/healthz"
