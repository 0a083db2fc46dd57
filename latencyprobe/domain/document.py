"""The report of a run on one machine.

A *run* measures a few *targets* (processes, cgroups, network namespaces) on one *node* for a while.
`latencyprobe run -o json` prints a `LatencyReport` by the rules of `serialisation`: fields are API.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.overhead import ProgramsOverhead
from latencyprobe.domain.report import API_VERSION, NodeReport, TargetReport
from latencyprobe.domain.serialisation import written

KIND = "LatencyReport"


@dataclass(frozen=True, slots=True)
class Node:
    """The machine of the run, and the measurements of the machine itself."""

    name: str
    kernel: str
    architecture: str
    kernel_types: str
    cgroup_version: str
    agent_version: str
    report: NodeReport = field(default_factory=NodeReport, metadata=written(inlined=True))


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The measurement of one target. `pids`: the processes that belonged to it at some time.

    `omitted_pids`: the largest number of others at a time; the agent reports the 64 smallest ids.
    `message`: the agent's message on a problem with the target; empty without a problem.
    """

    name: str
    pids: tuple[int, ...]
    cgroup: str
    report: TargetReport = field(metadata=written(inlined=True))
    message: str = field(default="", metadata=written(absent_if_empty=True))
    omitted_pids: int = field(default=0, metadata=written(absent_if_empty=True))


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """The report of a run."""

    api_version: str = field(default=API_VERSION, init=False)
    kind: str = field(default=KIND, init=False)
    node: Node
    duration_seconds: float = field(metadata=written(digits=3))
    targets: tuple[TargetResult, ...]
    coverage: tuple[StageCoverage, ...]
    overhead: ProgramsOverhead | None = None


def incomplete(coverage: Iterable[StageCoverage]) -> tuple[StageCoverage, ...]:
    """Return the stages that were not measured, or only in part."""
    return tuple(stage for stage in coverage if stage.state is not CoverageState.ACTIVE)
