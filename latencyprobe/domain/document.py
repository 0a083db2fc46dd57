"""The report of a run on one machine, as values and as the public JSON document.

A *run* measures a few *targets* (processes, cgroups, network namespaces) on one *node* for a while.
`LatencyReport.document()` is what `latencyprobe run -o json` prints; its fields are API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.report import API_VERSION, NodeReport, TargetReport, verdict_document

KIND = "LatencyReport"


@dataclass(frozen=True, slots=True)
class Node:
    """The machine that was measured on, and what was measured of the machine itself."""

    name: str
    kernel: str
    architecture: str
    kernel_types: str
    cgroup_version: str
    agent_version: str
    report: NodeReport = field(default_factory=NodeReport)

    def document(self) -> dict[str, Any]:
        """The node as the API shows it."""
        return {
            "name": self.name,
            "kernel": self.kernel,
            "architecture": self.architecture,
            "kernelTypes": self.kernel_types,
            "cgroupVersion": self.cgroup_version,
            "agentVersion": self.agent_version,
            **self.report.document(),
        }


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What was seen of one target. `pids`: every process that belonged to it at some time.

    `message` says what is wrong with the target, in the agent's words; empty where nothing is.
    """

    name: str
    pids: tuple[int, ...]
    cgroup: str
    report: TargetReport
    message: str = ""

    def document(self) -> dict[str, Any]:
        """The target as the API shows it; the message only where there is one."""
        fields: dict[str, Any] = {
            "name": self.name,
            "pids": list(self.pids),
            "cgroup": self.cgroup,
            "stages": [stage.document() for stage in self.report.stages],
            "counters": dict(self.report.counters),
            "netnsCounters": dict(self.report.netns_counters),
            "verdict": verdict_document(self.report.verdict),
        }
        if self.message:
            fields["message"] = self.message
        return fields


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """All that a run has to say."""

    node: Node
    duration_s: float
    targets: tuple[TargetResult, ...]
    coverage: tuple[StageCoverage, ...]

    def document(self) -> dict[str, Any]:
        """The report as one JSON-ready document."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "node": self.node.document(),
            "durationSeconds": round(self.duration_s, 3),
            "targets": [target.document() for target in self.targets],
            "coverage": [stage.document() for stage in self.coverage],
        }


def incomplete(coverage: Iterable[StageCoverage]) -> tuple[StageCoverage, ...]:
    """The stages that were not, or not fully, measured."""
    return tuple(stage for stage in coverage if stage.state is not CoverageState.ACTIVE)
