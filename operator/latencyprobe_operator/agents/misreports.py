"""The faults in one agent's reports: each is counted for its node, and a few are logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import ReportedProbe

log = logging.getLogger(__name__)

# An agent can send faults by the million: one line of each kind in this time.
LOG_INTERVAL_S = 60.0


class Misreports:
    """A record of the faults in the reports of one agent. `clock`: seconds of a monotonic clock."""

    __slots__ = ("_lines", "_metrics", "_node")

    def __init__(
        self, node: str, metrics: OperatorMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node = node
        self._metrics = metrics
        self._lines = RepeatedLines(
            log, clock=clock, more="{} similar ones before it were not logged"
        )

    def note_corrupt(self, problem: str) -> None:
        """Count a part of a report that is corrupt and left out."""
        self._metrics.corrupt_reports.labels(self._node).inc()
        self._warn("corrupt", f"corrupt report left out: {problem}")

    def note_excess(self, problem: str) -> None:
        """Count a stream of reports that is ended because it has too many."""
        self._metrics.excessive_streams.labels(self._node).inc()
        self._warn("excess", f"its stream of reports is ended: {problem}")

    def note_probe(self, report: ReportedProbe) -> None:
        """Count the parts of this report that are corrupt and left out."""
        for target in report.targets:
            if target.corruption:
                self.note_corrupt(f"target {target.id}: {target.corruption}")
            for stage in target.unknown_stages:
                self._warn("unknown", f"stage {stage!r} is unknown to this operator and left out")
        if report.unasked:
            self.note_corrupt(
                f"{report.unasked} targets or pods of probe {report.probe_uid} that it was not "
                "asked for"
            )
        if report.corruption:
            self.note_corrupt(f"probe {report.probe_uid}: {report.corruption}")
        if report.node_corruption:
            self.note_corrupt(report.node_corruption)

    def note_unexpected(self, error: Exception) -> None:
        """Count a part of a report that the operator failed on: a fault of its own too."""
        self._metrics.corrupt_reports.labels(self._node).inc()
        self._warn("unexpected", f"report left out: unexpected {error!r}", error)

    def note_failed(self, target_id: str, message: str) -> None:
        """Log a target that cannot be measured any more."""
        self._warn("failed", f"{target_id}: {message}")

    def _warn(self, kind: str, text: str, error: Exception | None = None) -> None:
        self._lines.note(
            kind, f"agent on node {self._node}: {text}", interval_s=LOG_INTERVAL_S, error=error
        )
