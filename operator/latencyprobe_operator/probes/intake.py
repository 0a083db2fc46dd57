"""The intake of agents' reports on one probe: into its windows, and its record of staleness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_operator.api.spec import ProbeSpec
from latencyprobe_operator.api.timestamps import timestamp
from latencyprobe_operator.desired_state import PlacedPod
from latencyprobe_operator.model import Pod
from latencyprobe_operator.observed_state import ReportedProbe
from latencyprobe_operator.probes.staleness import ReportTimes
from latencyprobe_operator.probes.windows import ProbeWindows, of_one_pod


class ReportIntake:
    """The measurements that agents have reported of one probe."""

    def __init__(self, *, last_report_time: str | None, node_figures: bool = False) -> None:
        """Take in nothing yet. `node_figures`: figures of whole nodes are kept."""
        self._node_figures = node_figures
        self.windows = ProbeWindows(1, 1)
        self.report_times = ReportTimes()
        self.reported = False
        """An agent has reported since measuring began."""
        self.last_report_time = last_report_time

    def take(
        self,
        node: str,
        report: ReportedProbe,
        placed: Mapping[str, PlacedPod],
        *,
        at: float,
        wall: float,
    ) -> None:
        """Take in the report of a node on its own pods among these; `wall` is since the epoch.

        Figures of the whole node that are not allowed are dropped: older agents send them always.
        A part of a report counts as a report with the last one.
        """
        pods: dict[str, Measurement] = {}
        for target in report.targets:
            pod_uid = target.id.partition("/")[0]
            pod = placed.get(pod_uid)
            if pod and pod.pod.node == node:
                measurement = self._allowed(pod.pod, target.measurement)
                pods[pod_uid] = of_one_pod(pods.get(pod_uid, NOTHING), measurement)
        for pod_uid, measurement in pods.items():
            self.windows.add(pod_uid, measurement, at=at)
        if self._node_figures:
            self.windows.add_node(node, report.node, at=at)
        if not report.is_complete:
            return
        self.reported = True
        self.last_report_time = timestamp(wall)
        self.report_times.note(node, at=at, wall=wall)

    def _allowed(self, pod: Pod, measurement: Measurement) -> Measurement:
        """Return the part of a pod's measurement that its tenant may see."""
        if self._node_figures or not pod.host_network:
            return measurement
        return replace(measurement, netns_counters={})

    def adopt(self, spec: ProbeSpec, before: ProbeSpec | None) -> None:
        """Fit the windows to a new spec; clear them if it measures something else."""
        self.windows.resize(spec.interval_s, spec.window_s)
        if before and _measured(before) != _measured(spec):
            self.clear()

    def clear(self) -> None:
        """Begin another measurement."""
        self.windows.clear()
        self.reported = False


def _measured(spec: ProbeSpec) -> tuple[object, ...]:
    """Return the parts that must be equal for two specs' figures to be added up."""
    return spec.selector, spec.containers, spec.modules, spec.ports, spec.protocols
