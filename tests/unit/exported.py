"""All metrics of operator and agents, each with a sample."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from latencyprobe.commands.pki import Authority
from latencyprobe.exposition.page import ClassicView
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probe_figures import ObjectiveFigures, ProbeSnapshot
from tests.unit.agent.sample_figures import sample_figures


def operator_metrics(folder: Path) -> OperatorMetrics:
    """The operator's, with a probe, its objective, and a certificate in this folder."""
    metrics = OperatorMetrics()
    metrics.leader.set(1)
    metrics.corrupt_reports.labels("node-a").inc()
    metrics.excessive_streams.labels("node-a").inc()
    metrics.set_gauges({"Running": 1}, {"Ready": 1}, 0)
    metrics.show_certificates(_one_certificate(folder))
    objective = ObjectiveFigures("reads", "rx.total", 99, 1, 1, "met")
    snapshot = ProbeSnapshot(
        "shop", "checkout", 1, {"Ready": 1}, {"rx.total": (1, 2, 3)}, (objective,), "Peer"
    )
    metrics.figures.show("uid", snapshot)
    return metrics


def agent_metrics(folder: Path) -> AgentMetrics:
    """The agent's on itself, with a certificate in this folder."""
    metrics = AgentMetrics()
    metrics.show_certificates(_one_certificate(folder))
    return metrics


def exported_metrics(folder: Path) -> set[str]:
    """The names of all metrics, in the form of their samples and as native histograms."""
    registries = (
        operator_metrics(folder).registry,
        agent_metrics(folder).registry,
        sample_figures(),
    )
    return set().union(*map(_names, registries))


def _names(registry: CollectorRegistry) -> set[str]:
    families = list(ClassicView(registry).collect())
    native = {family.name for family in families if family.type == "histogram"}
    return native | {sample.name for family in families for sample in family.samples}


def _one_certificate(folder: Path) -> dict[str, Path]:
    path = folder / "tls.crt"
    path.write_bytes(Authority().credential.certificate_pem)
    return {"own": path}
