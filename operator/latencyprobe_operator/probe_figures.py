"""The figures of LatencyProbes as metrics: of all pods of one together, as its status has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.registry import Collector

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.exposition.families import label_value

PERCENTILES = (50, 90, 99)
_PROBE = ("namespace", "probe")
_OBJECTIVE = (*_PROBE, "objective", "stage", "percentile")
_OUTCOMES = ("met", "missed", "unknown")


@dataclass(frozen=True, slots=True)
class ObjectiveFigures:
    """One objective: its limit, the percentile that it is held to, and the outcome."""

    name: str
    stage: str
    percentile: float
    max_ns: int
    value_ns: int | None
    outcome: str


@dataclass(frozen=True, slots=True)
class ProbeSnapshot:
    """The figures of one LatencyProbe at its newest status.

    `percentiles_ns`: by stage, in the order of PERCENTILES. `verdict`: empty if there is none.
    """

    namespace: str
    name: str
    pods: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)
    """The number of nodes by state."""
    percentiles_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    objectives: tuple[ObjectiveFigures, ...] = ()
    verdict: str = ""
    unobserved_s: float = 0.0

    @property
    def labels(self) -> list[str]:
        """The values of the labels of a probe."""
        return [label_value(self.namespace), label_value(self.name)]


class ShownProbes(Collector):
    """The newest snapshots, by the probes' UIDs."""

    def __init__(self) -> None:
        self._snapshots: dict[str, ProbeSnapshot] = {}

    def show(self, uid: str, snapshot: ProbeSnapshot) -> None:
        """Show these figures in place of those before."""
        self._snapshots[uid] = snapshot

    def forget(self, uid: str) -> None:
        """Show no figures of this probe any more."""
        self._snapshots.pop(uid, None)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        snapshots = list(self._snapshots.values())
        yield from _of_probes(snapshots)
        yield from _of_objectives(snapshots)


def _of_probes(snapshots: Iterable[ProbeSnapshot]) -> Iterator[Metric]:
    stages = GaugeMetricFamily(
        "latencyprobe_operator_probe_stage_seconds",
        "Percentiles of a stage, over the window and all pods of the probe.",
        labels=[*_PROBE, "stage", "percentile"],
    )
    pods = GaugeMetricFamily(
        "latencyprobe_operator_probe_pods", "Pods that the selector matches.", labels=_PROBE
    )
    nodes = GaugeMetricFamily(
        "latencyprobe_operator_probe_nodes",
        "Nodes with pods of the probe, by state.",
        labels=[*_PROBE, "state"],
    )
    unobserved = GaugeMetricFamily(
        "latencyprobe_operator_probe_unobserved_seconds",
        "Longest unobserved part of a node's window.",
        labels=_PROBE,
    )
    verdict = StateSetMetricFamily(
        "latencyprobe_operator_probe_verdict",
        "1 for the verdict on all pods of the probe together.",
        labels=_PROBE,
    )
    for each in snapshots:
        pods.add_metric(each.labels, each.pods)
        unobserved.add_metric(each.labels, each.unobserved_s)
        for state, number in each.nodes.items():
            nodes.add_metric([*each.labels, state], number)
        for stage, values in each.percentiles_ns.items():
            for percentile, value_ns in zip(PERCENTILES, values, strict=True):
                stages.add_metric([*each.labels, stage, f"p{percentile}"], value_ns / 1e9)
        if each.verdict:
            states = {str(name): name == each.verdict for name in Bottleneck}
            verdict.add_metric(each.labels, states)
    yield from (stages, pods, nodes, unobserved, verdict)


def _of_objectives(snapshots: Iterable[ProbeSnapshot]) -> Iterator[Metric]:
    limit = GaugeMetricFamily(
        "latencyprobe_operator_objective_limit_seconds",
        "Limit of an objective.",
        labels=_OBJECTIVE,
    )
    value = GaugeMetricFamily(
        "latencyprobe_operator_objective_seconds",
        "Percentile that is held to the limit.",
        labels=_OBJECTIVE,
    )
    outcome = StateSetMetricFamily(
        "latencyprobe_operator_objective_outcome",
        "1 for the outcome of an objective.",
        labels=_OBJECTIVE,
    )
    for each in snapshots:
        for objective in each.objectives:
            percentile = f"p{objective.percentile:g}"
            labels = [*each.labels, label_value(objective.name), objective.stage, percentile]
            limit.add_metric(labels, objective.max_ns / 1e9)
            if objective.value_ns is not None:
                value.add_metric(labels, objective.value_ns / 1e9)
            states = {name: name == objective.outcome for name in _OUTCOMES}
            outcome.add_metric(labels, states)
    yield from (limit, value, outcome)
