"""The names that metrics have in OpenTelemetry, by those that Prometheus reads.

Units and instruments are those of the semantic conventions: UCUM, annotations in braces, and an
UpDownCounter for numbers of things. A family with states has a point for each of them, 1 or 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

NAMESPACE = "latencyprobe"


class InstrumentKind(StrEnum):
    """The kinds of instruments that are used."""

    COUNTER = "Counter"
    UP_DOWN_COUNTER = "UpDownCounter"
    GAUGE = "Gauge"
    HISTOGRAM = "Histogram"
    EXPONENTIAL_HISTOGRAM = "ExponentialHistogram"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric of OpenTelemetry. `state`: the attribute with a state, of a family with states."""

    name: str
    unit: str
    kind: InstrumentKind
    state: str = ""

    @property
    def is_integer(self) -> bool:
        """Return whether values are numbers of things."""
        return self.unit.startswith("{") and self.kind is not InstrumentKind.GAUGE


def attribute_of(label: str) -> str:
    """Return the attribute that a label of Prometheus is."""
    return f"{NAMESPACE}.{label}"


def _counter(name: str, unit: str) -> Instrument:
    return Instrument(f"{NAMESPACE}.{name}", unit, InstrumentKind.COUNTER)


def _number(name: str, unit: str, state: str = "") -> Instrument:
    attribute = attribute_of(state) if state else ""
    return Instrument(f"{NAMESPACE}.{name}", unit, InstrumentKind.UP_DOWN_COUNTER, attribute)


def _gauge(name: str, unit: str) -> Instrument:
    return Instrument(f"{NAMESPACE}.{name}", unit, InstrumentKind.GAUGE)


def _histogram(name: str) -> Instrument:
    return Instrument(f"{NAMESPACE}.{name}", "s", InstrumentKind.HISTOGRAM)


_FIGURES: Mapping[str, Instrument] = {
    "latencyprobe_stage_seconds": Instrument(
        f"{NAMESPACE}.stage.duration", "s", InstrumentKind.EXPONENTIAL_HISTOGRAM
    ),
    "latencyprobe_missing_samples": _counter("stage.missing", "{sample}"),
    "latencyprobe_events": _counter("event.count", "{event}"),
    "latencyprobe_counted_seconds": _counter("wait.time", "s"),
    "latencyprobe_drops": _counter("packet.dropped", "{packet}"),
    "latencyprobe_pending": _number("pending.count", "{wait}"),
    "latencyprobe_pending_oldest_seconds": _gauge("pending.oldest", "s"),
    "latencyprobe_verdict": _number("pod.verdict", "{pod}", "verdict"),
    "latencyprobe_pods": _number("pod.count", "{pod}"),
    "latencyprobe_unobserved_seconds": _gauge("window.unobserved", "s"),
    "latencyprobe_pods_without_series": _number("pod.without_series", "{pod}"),
    "latencyprobe_sampling_ratio": _gauge("sampling.ratio", "1"),
    "latencyprobe_coverage": _number("stage.coverage", "{stage}", "state"),
}
_AGENT: Mapping[str, Instrument] = {
    "latencyprobe_module_loaded": _number("module.loaded", "{module}"),
    "latencyprobe_targets": _number("target.count", "{target}"),
    "latencyprobe_program_cpu_ratio": _gauge("program.cpu.usage", "{cpu}"),
    "latencyprobe_program_cpu_limit_ratio": _gauge("program.cpu.limit", "{cpu}"),
    "latencyprobe_missed_program_runs": _counter("program.missed_runs", "{run}"),
    "latencyprobe_missed_pods": _counter("pod.missed", "{pod}"),
    "latencyprobe_reports_sent": _counter("report.sent", "{report}"),
    "latencyprobe_engine_reads": _counter("engine.reads", "{read}"),
    "latencyprobe_apply_seconds": _histogram("apply.duration"),
    "latencyprobe_certificate_begin_timestamp_seconds": _gauge("certificate.begin", "s"),
    "latencyprobe_certificate_end_timestamp_seconds": _gauge("certificate.end", "s"),
    "latencyprobe_refused_connections": _counter("connection.refused", "{connection}"),
}
_OPERATOR: Mapping[str, Instrument] = {
    "latencyprobe_operator_leader": _number("operator.leader", "{operator}"),
    "latencyprobe_operator_probes": _number("operator.probe.count", "{probe}"),
    "latencyprobe_operator_agents": _number("operator.agent.count", "{agent}"),
    "latencyprobe_operator_disconnected_nodes": _number("operator.node.disconnected", "{node}"),
    "latencyprobe_operator_reports": _counter("operator.report.received", "{report}"),
    "latencyprobe_operator_corrupt_reports": _counter("operator.report.corrupt", "{report}"),
    "latencyprobe_operator_excessive_streams": _counter("operator.stream.excessive", "{stream}"),
    "latencyprobe_operator_status_writes": _counter("operator.status.written", "{write}"),
    "latencyprobe_operator_status_write_failures": _counter("operator.status.failed", "{write}"),
    "latencyprobe_operator_apply_seconds": _histogram("operator.apply.duration"),
    "latencyprobe_operator_certificate_begin_timestamp_seconds": _gauge(
        "operator.certificate.begin", "s"
    ),
    "latencyprobe_operator_certificate_end_timestamp_seconds": _gauge(
        "operator.certificate.end", "s"
    ),
    "latencyprobe_operator_probe_stage_seconds": _gauge("probe.stage.duration", "s"),
    "latencyprobe_operator_probe_pods": _number("probe.pod.count", "{pod}"),
    "latencyprobe_operator_probe_nodes": _number("probe.node.count", "{node}"),
    "latencyprobe_operator_probe_unobserved_seconds": _gauge("probe.window.unobserved", "s"),
    "latencyprobe_operator_probe_verdict": _number("probe.verdict", "{probe}", "verdict"),
    "latencyprobe_operator_objective_limit_seconds": _gauge("objective.limit", "s"),
    "latencyprobe_operator_objective_seconds": _gauge("objective.value", "s"),
    "latencyprobe_operator_objective_outcome": _number(
        "objective.outcome", "{objective}", "outcome"
    ),
}
_PUSHING: Mapping[str, Instrument] = {
    "latencyprobe_otlp_exported_points": _counter("otlp.point.exported", "{data_point}"),
    "latencyprobe_otlp_lost_points": _counter("otlp.point.lost", "{data_point}"),
    "latencyprobe_otlp_queued_bytes": Instrument(
        f"{NAMESPACE}.otlp.queue.size", "By", InstrumentKind.UP_DOWN_COUNTER
    ),
}
INSTRUMENTS: Mapping[str, Instrument] = {**_FIGURES, **_AGENT, **_OPERATOR, **_PUSHING}
"""Each family of metrics of agent and operator."""
