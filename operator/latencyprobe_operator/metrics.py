"""The operator's own metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from latencyprobe.exposition.certificates import CertificateTimes
from latencyprobe_operator.probe_figures import ShownProbes


class OperatorMetrics:
    """All metrics, in a registry of their own, so that tests can have more than one."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.leader = Gauge(
            "latencyprobe_operator_leader",
            "1 for the operator that serves the LatencyProbes, 0 for a standby.",
            registry=self.registry,
        )
        self.probes = Gauge(
            "latencyprobe_operator_probes",
            "LatencyProbes by phase.",
            ["phase"],
            registry=self.registry,
        )
        self.agents = Gauge(
            "latencyprobe_operator_agents",
            "Agents by the state of their connection.",
            ["state"],
            registry=self.registry,
        )
        self.disconnected_nodes = Gauge(
            "latencyprobe_operator_disconnected_nodes",
            "Nodes whose agent has had no lasting connection for 5 minutes.",
            registry=self.registry,
        )
        self.reports = Counter(
            "latencyprobe_operator_reports",
            "Reports received from agents.",
            registry=self.registry,
        )
        self.corrupt_reports = Counter(
            "latencyprobe_operator_corrupt_reports",
            "Parts of agents' reports that are corrupt or were not asked for, and were discarded.",
            ["agent_node"],
            registry=self.registry,
        )
        self.excessive_streams = Counter(
            "latencyprobe_operator_excessive_streams",
            "Streams of reports that were ended because the agent sent too many.",
            ["agent_node"],
            registry=self.registry,
        )
        self.status_writes = Counter(
            "latencyprobe_operator_status_writes",
            "Statuses written to the API server.",
            registry=self.registry,
        )
        self.status_write_failures = Counter(
            "latencyprobe_operator_status_write_failures",
            "Writes of a status that failed; each is retried.",
            registry=self.registry,
        )
        self.apply_times = Histogram(
            "latencyprobe_operator_apply_seconds",
            "Time from sending a desired state to the agent's answer.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=self.registry,
        )
        self.figures = ShownProbes()
        self.registry.register(self.figures)

    def set_gauges(
        self, probes: Mapping[str, int], agents: Mapping[str, int], disconnected_nodes: int
    ) -> None:
        """Set the numbers of probes by phase, of agents by state, and of disconnected nodes."""
        self.disconnected_nodes.set(disconnected_nodes)
        for gauge, counts in ((self.probes, probes), (self.agents, agents)):
            gauge.clear()
            for label, count in counts.items():
                gauge.labels(label).set(count)

    def forget_node(self, node: str) -> None:
        """Remove the series of a node that does not exist any more."""
        self.corrupt_reports.remove(node)
        self.excessive_streams.remove(node)

    def show_certificates(self, files: Mapping[str, Path]) -> None:
        """Show the begins and ends of the certificates in these files, by a name of each."""
        self.registry.register(CertificateTimes("latencyprobe_operator", files))
