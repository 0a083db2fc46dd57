"""The agent's own metrics for Prometheus, and its health for the kubelet.

With a metrics address it serves `/metrics`, `/healthz` (the agent lives) and `/readyz` (it serves).
The kubelet cannot present a client certificate, so it uses these pages instead of gRPC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.exposition.certificates import CertificateTimes
from latencyprobe.exposition.page import metrics_page
from latencyprobe.process.http_server import Page, health_page
from latencyprobe_agent.serving.tls_proxy import TlsRefusal


class _Total:
    """A counter of which the whole sum is known, and not what is added."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._counter = Counter(name, documentation, registry=registry)
        self._known = 0

    def show(self, total: int) -> None:
        """Show the sum since the start."""
        self._counter.inc(total - self._known)
        self._known = total


class AgentMetrics:
    """The agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._modules = Gauge(
            "latencyprobe_module_loaded",
            "1 if the module's eBPF programs are attached.",
            ["module"],
            registry=self.registry,
        )
        self._targets = Gauge(
            "latencyprobe_targets",
            "Targets of all probes, by state.",
            ["state"],
            registry=self.registry,
        )
        self._program_cpu = Gauge(
            "latencyprobe_program_cpu_ratio",
            "Cost of the eBPF programs (run time and calls) in cores; 0 while there is no figure.",
            registry=self.registry,
        )
        self._budget = Gauge(
            "latencyprobe_program_cpu_limit_ratio",
            "Budget of these programs in cores, of the probes and the administrator; 0: no limit.",
            registry=self.registry,
        )
        self._missed_runs = _Total(
            "latencyprobe_missed_program_runs",
            "Events that the kernel kept from an eBPF program that was running on that CPU.",
            self.registry,
        )
        self._missed_pods = _Total(
            "latencyprobe_missed_pods",
            "Pods whose cgroup was removed before it could be measured.",
            self.registry,
        )
        self.reports = Counter(
            "latencyprobe_reports_sent", "Reports sent to the client.", registry=self.registry
        )
        self._reads = Counter(
            "latencyprobe_engine_reads", "Readings of the kernel's maps.", registry=self.registry
        )
        self._apply_times = Histogram(
            "latencyprobe_apply_seconds",
            "Time to put a desired state in force, compiling included.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=self.registry,
        )
        self._refused = Counter(
            "latencyprobe_refused_connections",
            "Connections that were refused or ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for refusal in TlsRefusal:
            self._refused.labels(refusal)
        self.show_modules(())
        self.show_targets({})

    def show_modules(self, loaded: Iterable[Module]) -> None:
        """Show the loaded modules."""
        modules = set(loaded)
        if not modules:
            self._program_cpu.set(0)
        for module in Module:
            self._modules.labels(module).set(module in modules)

    def show_targets(self, counts: Mapping[TargetState, int]) -> None:
        """Show the number of targets by state."""
        for state in TargetState:
            self._targets.labels(state.lower()).set(counts.get(state, 0))

    def show_budget(self, cpu_percent: float) -> None:
        """Show the budget of the programs in percent of one core; 0 for none."""
        self._budget.set(cpu_percent / 100)

    def show_missed_pods(self, number: int) -> None:
        """Show the number of pods since the start that ended before they could be measured."""
        self._missed_pods.show(number)

    def count_refusal(self, reason: str) -> None:
        """Count a refused client."""
        self._refused.labels(reason).inc()

    def show_certificates(self, files: Mapping[str, Path]) -> None:
        """Show the begins and ends of the certificates in these files, by a name of each."""
        self.registry.register(CertificateTimes("latencyprobe", files))

    @contextmanager
    def time_apply(self) -> Iterator[None]:
        """Time the adoption of a desired state, which runs inside; not if it fails."""
        began = time.perf_counter()
        yield
        self._apply_times.observe(time.perf_counter() - began)

    def note_reading(self, cpu_percent: float | None, missed_runs: int) -> None:
        """Count a reading of the engine; show the cost and the missed runs of the programs."""
        self._reads.inc()
        self._missed_runs.show(missed_runs)
        self._program_cpu.set((cpu_percent or 0) / 100)


def pages(metrics: AgentMetrics, is_ready: Callable[[], bool]) -> dict[str, Page]:
    """Return the pages that are served over HTTP, by path."""
    return {
        "/metrics": metrics_page(metrics.registry),
        "/healthz": health_page(),
        "/readyz": health_page(is_ready),
    }
