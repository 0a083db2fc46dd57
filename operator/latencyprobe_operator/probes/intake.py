"""The intake of agents' reports on one probe: into its windows, and its record of staleness."""

from __future__ import annotations

import logging
from collections.abc import Collection

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_operator.api.spec import ProbeKey, ProbeSpec
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import ReportedProbe, ReportedTarget
from latencyprobe_operator.probes.staleness import ReportTimes
from latencyprobe_operator.probes.windows import ProbeWindows, of_one_pod

log = logging.getLogger(__name__)


class ReportIntake:
    """The measurements that agents have reported of one probe."""

    def __init__(
        self, key: ProbeKey, *, metrics: OperatorMetrics, last_report_time: str | None
    ) -> None:
        self.windows = ProbeWindows(1, 1)
        self.report_times = ReportTimes()
        self.reported = False
        """An agent has reported since measuring began."""
        self.last_report_time = last_report_time
        self._key = key
        self._metrics = metrics
        self._unknown_stages: set[str] = set()

    def take(
        self,
        node: str,
        report: ReportedProbe,
        pod_uids: Collection[str],
        *,
        at: float,
        wall: float,
    ) -> None:
        """Take in a report on these pods of a node; `wall` is the time since the epoch."""
        pods: dict[str, Measurement] = {}
        for target in report.targets:
            pod_uid = target.id.partition("/")[0]
            if pod_uid in pod_uids:
                self._log_left_out(node, target)
                pods[pod_uid] = of_one_pod(pods.get(pod_uid, NOTHING), target.measurement)
        for pod_uid, measurement in pods.items():
            self.windows.add(pod_uid, measurement, at=at)
        if report.node_corruption:
            self._metrics.corrupt_reports.inc()
            log.warning(
                "%s: corrupt report of node %s on itself left out: %s",
                self._key,
                node,
                report.node_corruption,
            )
        self.windows.add_node(node, report.node, at=at)
        self.reported = True
        self.last_report_time = timestamp(wall)
        self.report_times.note(node, at=at, wall=wall)

    def adopt(self, spec: ProbeSpec, before: ProbeSpec | None) -> None:
        """Fit the windows to a new spec; clear them if it measures something else."""
        self.windows.resize(spec.interval_s, spec.window_s)
        if before and _measured(before) != _measured(spec):
            self.clear()

    def clear(self) -> None:
        """Begin another measurement."""
        self.windows.clear()
        self.reported = False

    def _log_left_out(self, node: str, target: ReportedTarget) -> None:
        if target.corruption:
            self._metrics.corrupt_reports.inc()
            log.warning(
                "%s: corrupt report from node %s on %s left out: %s",
                self._key,
                node,
                target.id,
                target.corruption,
            )
        for stage in target.unknown_stages:
            if stage not in self._unknown_stages:
                self._unknown_stages.add(stage)
                log.warning(
                    "%s: stage %r from node %s is unknown to this operator and left out",
                    self._key,
                    stage,
                    node,
                )


def _measured(spec: ProbeSpec) -> tuple[object, ...]:
    """Return the parts that must be equal for two specs' figures to be added up."""
    return spec.selector, spec.containers, spec.modules, spec.ports, spec.protocols
