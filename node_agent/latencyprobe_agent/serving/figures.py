"""The figures of pods and probes as metrics, made for each scrape of the sums and newest windows.

Labels have names of pods, drop reasons and so on, which others have chosen: `label_value` of the
exposition makes them harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client.metrics_core import (
    GaugeMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import DROP_PREFIX, is_duration
from latencyprobe.exposition.families import (
    BegunCounters,
    Exemplar,
    StageHistograms,
    exemplar_labels,
    label_value,
)
from latencyprobe_agent.totals import Subject, Total, Totals, probe_names
from latencyprobe_agent.windows.probe_window import WindowReport

_OWNER = ("namespace", "probe", "pod", "container", "node")
_PROBE = ("namespace", "probe", "node")
_NS = "Ns"
_LOSSES = ("lost", "unmatched", "clamped")


class FigureSource(Protocol):
    """The agent, as far as these figures need it."""

    @property
    def coverage(self) -> Iterable[StageCoverage]:
        """Every stage, with its state."""

    @property
    def sampling_ratio(self) -> float:
        """The share of the packets that is measured."""

    def newest_reports(self) -> Iterable[WindowReport]:
        """Return the reports over the windows that end at the newest reading."""


def exemplar_of(packet: TracedPacket, stage: str) -> Exemplar:
    """Return a traced packet as an exemplar of one of its stages.

    Its labels are both ends, and the parts of its total, the longest first.
    """
    ends = {"remote": packet.remote, "local": packet.local}
    parts = [(name, ns) for name, ns in packet.stages_ns.items() if name != packet.total]
    labels = [(name, str(end)) for name, end in ends.items() if end is not None]
    labels += [
        (name.replace(".", "_"), format_ns(ns))
        for name, ns in sorted(parts, key=lambda part: part[1], reverse=True)
    ]
    return Exemplar(exemplar_labels(labels), packet.stages_ns[stage], packet.ended_unix_ns)


class FigureCollector(Collector):
    """All figures of pods, probes and coverage, made from sums when they are asked for."""

    def __init__(
        self,
        source: FigureSource,
        totals: Totals,
        node: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._totals = totals
        self._node = label_value(node)
        self._clock = clock
        # Fixed: a sum's begin must be the same in each collection.
        self._epoch_s = time.time() - clock()

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        now = self._clock()
        totals = list(self._totals.current(now))
        yield self._stages(totals, now)
        yield self._missing(totals)
        yield from self._counters(totals)
        yield from self._pending()
        yield from self._verdicts()
        yield self._left_out()
        yield from self._coverage()

    def _owner(self, subject: Subject) -> list[str]:
        names = (subject.namespace, subject.probe, subject.pod, subject.container)
        return [*map(label_value, names), self._node]

    def _began_s(self, total: Total) -> float:
        return self._epoch_s + total.began_at

    def _stages(self, totals: Iterable[tuple[Subject, Total]], now: float) -> Metric:
        family = StageHistograms(
            "latencyprobe_stage_seconds", "Time of packets and connections in each stage."
        )
        for subject, total in totals:
            owner = dict(zip(_OWNER, self._owner(subject), strict=True))
            for name, stage in total.stages.items():
                slow = (exemplar_of(packet, name) for packet in stage.slow_packets(now))
                began_s = self._began_s(total)
                family.add({**owner, "stage": name}, stage, slow, began_s=began_s)
        return family

    def _missing(self, totals: Iterable[tuple[Subject, Total]]) -> Metric:
        family = BegunCounters(
            "latencyprobe_missing_samples",
            "Samples that a stage lacks: lost, unmatched, or clamped to 0.",
            labels=[*_OWNER, "stage", "reason"],
        )
        for subject, total in totals:
            owner = self._owner(subject)
            for name, stage in total.stages.items():
                for reason in _LOSSES:
                    if count := getattr(stage, reason):
                        family.add_metric([*owner, name, reason], count, self._began_s(total))
        return family

    def _counters(self, totals: Iterable[tuple[Subject, Total]]) -> Iterator[Metric]:
        events = BegunCounters(
            "latencyprobe_events", "Events without a duration.", labels=[*_OWNER, "counter"]
        )
        waited = BegunCounters(
            "latencyprobe_counted_seconds",
            "Time of waiting that is counted and is no stage.",
            labels=[*_OWNER, "counter"],
        )
        drops = BegunCounters(
            "latencyprobe_drops",
            "Dropped packets by the kernel's reason.",
            labels=[*_OWNER, "reason"],
        )
        for subject, total in totals:
            owner, began_s = self._owner(subject), self._began_s(total)
            for name, count in total.counters.items():
                if not count:
                    continue
                if name.startswith(DROP_PREFIX):
                    reason = label_value(name.removeprefix(DROP_PREFIX))
                    drops.add_metric([*owner, reason], count, began_s)
                elif is_duration(name):
                    counter = label_value(name.removesuffix(_NS))
                    waited.add_metric([*owner, counter], count / 1e9, began_s)
                else:
                    events.add_metric([*owner, label_value(name)], count, began_s)
        yield from (events, waited, drops)

    def _pending(self) -> Iterator[Metric]:
        number = GaugeMetricFamily(
            "latencyprobe_pending",
            "Waiting that had not ended at the last reading.",
            labels=[*_OWNER, "kind"],
        )
        oldest = GaugeMetricFamily(
            "latencyprobe_pending_oldest_seconds",
            "Age of the oldest of these.",
            labels=[*_OWNER, "kind"],
        )
        for subject, kinds in self._totals.pending().items():
            owner = self._owner(subject)
            for kind, pending in kinds.items():
                if pending.count:
                    number.add_metric([*owner, kind], pending.count)
                    oldest.add_metric([*owner, kind], pending.oldest_ns / 1e9)
        yield from (number, oldest)

    def _verdicts(self) -> Iterator[Metric]:
        counts = GaugeMetricFamily(
            "latencyprobe_pods",
            "Pods by verdict, over the window of the probe.",
            labels=[*_PROBE, "verdict"],
        )
        states = StateSetMetricFamily(
            "latencyprobe_verdict",
            "1 for the verdict on the pod, over the window of the probe.",
            labels=_OWNER,
        )
        unobserved = GaugeMetricFamily(
            "latencyprobe_unobserved_seconds",
            "Part of the window in which the probe was not measured.",
            labels=_PROBE,
        )
        for report in self._source.newest_reports():
            probe = [*map(label_value, probe_names(report.probe)), self._node]
            for verdict, number in report.summary.verdicts.items():
                counts.add_metric([*probe, verdict], number)
            unobserved.add_metric(probe, report.summary.unobserved_ns / 1e9)
            for pod, verdict in report.verdicts.items():
                if self._totals.is_shown(*probe_names(report.probe), pod):
                    owner = self._owner(Subject(*probe_names(report.probe), pod))
                    states.add_metric(owner, _states(Bottleneck, verdict))
        yield from (counts, states, unobserved)

    def _left_out(self) -> Metric:
        family = GaugeMetricFamily(
            "latencyprobe_pods_without_series",
            "Pods beyond the limit on pods with metrics of their own; they count in their probe's.",
            labels=_PROBE,
        )
        for subject, number in self._totals.left_out.items():
            names = map(label_value, (subject.namespace, subject.probe))
            family.add_metric([*names, self._node], number)
        return family

    def _coverage(self) -> Iterator[Metric]:
        ratio = GaugeMetricFamily(
            "latencyprobe_sampling_ratio",
            "Share of the packets that is measured.",
            labels=["node"],
        )
        ratio.add_metric([self._node], self._source.sampling_ratio)
        yield ratio
        states = StateSetMetricFamily(
            "latencyprobe_coverage",
            "1 for the state of a stage or counter on this node.",
            labels=["node", "stage"],
        )
        for each in self._source.coverage:
            states.add_metric(
                [self._node, label_value(each.name)], _states(CoverageState, each.state)
            )
        yield states


def _states(states: Iterable[str], current: str) -> dict[str, bool]:
    return {str(state): state == current for state in states}
