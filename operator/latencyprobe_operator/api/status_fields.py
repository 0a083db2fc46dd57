"""The fields of a LatencyProbe's status, as the CRD describes them.

The operator writes a `ProbeStatus` by the rules of `latencyprobe.domain.serialisation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.patience import Peer
from latencyprobe.domain.pending import Pending
from latencyprobe.domain.report import StageReport
from latencyprobe.domain.serialisation import written
from latencyprobe.domain.verdict import Verdict
from latencyprobe_operator.api.conditions import Condition


class Phase(StrEnum):
    """The phase of a probe's life."""

    PENDING = "Pending"
    RUNNING = "Running"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"
    COMPLETED = "Completed"


class NodeState(StrEnum):
    """The progress of one node's agent with a probe's targets. READY nodes are not listed."""

    NO_AGENT = "NoAgent"
    UNREACHABLE = "Unreachable"
    VERSION_SKEW = "VersionSkew"
    REJECTED = "Rejected"
    STALE = "Stale"
    CONNECTING = "Connecting"
    ATTACHING = "Attaching"
    FAILED = "Failed"
    PARTIAL = "Partial"
    READY = "Ready"


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """The targets to measure, counted."""

    pods: int
    containers: int
    nodes: int
    ready_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All pods taken together; without figures, only the message."""

    bottleneck: Bottleneck | None = None
    p50: str | None = None
    p99: str | None = None
    p50_ns: int | None = None
    """The same for programs: texts of durations do not sort."""
    p99_ns: int | None = None
    stage: str | None = None
    unobserved_seconds: int | None = None
    """The longest part of the window that a node did not observe; absent if all is observed."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodStatus:
    """One pod over the window."""

    name: str
    node: str
    containers: tuple[str, ...]
    ended: bool = field(default=False, metadata=written(absent_if_empty=True))
    verdict: Verdict
    stages: Sequence[StageReport]
    counters: Mapping[str, int]
    netns_counters: Mapping[str, int] = field(metadata=written(absent_if_empty=True))
    pending: Mapping[str, Pending] | None = field(
        default=None, metadata=written(absent_if_empty=True)
    )
    peers: Sequence[Peer] = field(default=(), metadata=written(absent_if_empty=True))
    cgroups: Sequence[Cgroup] = field(default=(), metadata=written(absent_if_empty=True))


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node that is not fully covered."""

    name: str
    state: NodeState
    message: str = field(metadata=written(absent_if_empty=True))
    last_report_time: str | None
    stages: tuple[StageCoverage, ...] = field(metadata=written(absent_if_empty=True))


@dataclass(frozen=True, slots=True)
class NodeContext:
    """The measurement of one node as a whole."""

    node: str
    counters: Mapping[str, int]
    stages: tuple[StageReport, ...]


@dataclass(frozen=True, slots=True)
class StatusTimes:
    """The times of the begin of measuring and of the last report, and the time between."""

    start_time: str | None = None
    measured_seconds: int | None = None
    """The part of spec.duration that has passed."""
    last_report_time: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeStatus:
    """The whole status. An idle probe has no figures of its own: the last ones stay."""

    observed_generation: int
    phase: Phase
    conditions: tuple[Condition, ...]
    targets: TargetCounts
    summary: Summary | None = None
    pods: tuple[PodStatus, ...] | None = None
    omitted_pods: int | None = None
    omitted_for_size: Mapping[str, int] = field(
        default_factory=dict, metadata=written(absent_if_empty=True)
    )
    """Numbers of rows that the status has no room for, by kind."""
    nodes: tuple[NodeStatus, ...] = ()
    omitted_nodes: int = 0
    node_context: tuple[NodeContext, ...] = field(
        default=(), metadata=written(absent_if_empty=True)
    )
    times: StatusTimes = field(default=StatusTimes(), metadata=written(inlined=True))
