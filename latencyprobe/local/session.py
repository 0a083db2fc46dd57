"""One measurement by one agent: send the desired state, add up the reports.

The local command's side of the protocol. It does not depend on the start of the agent, nor on the
presentation of the report.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import grpc
from google.protobuf.duration_pb2 import Duration

from latencyprobe.domain.cgroups import Cgroup, cgroup_text
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.document import LatencyReport, Node, TargetResult
from latencyprobe.domain.measurement import NOTHING, NOTHING_OF_THE_NODE, Measurement
from latencyprobe.domain.names import Names, named
from latencyprobe.domain.overhead import ProgramsOverhead
from latencyprobe.domain.report import TargetReport, report_on, report_on_node
from latencyprobe.domain.stages import Module, counters_of, stages_of
from latencyprobe.domain.targets import TargetState
from latencyprobe.printable import printable
from latencyprobe.protocol.cgroups import cgroups_from_proto
from latencyprobe.protocol.measurements import (
    PROTOCOL_VERSION,
    CorruptMessageError,
    measurement_from_proto,
    node_from_proto,
)
from latencyprobe.protocol.overhead import overhead_from_proto
from latencyprobe.protocol.peers import peers_from_proto
from latencyprobe.protocol.pending import pending_from_proto
from latencyprobe.protocol.states import coverage_from_proto, target_state_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc

PROBE_ID = "local"
GENERATION = 1
# The agent reports at least this often, even if the view is refreshed less often. The end of a run
# waits this long for its last figures.
LONGEST_INTERVAL_NS = 250_000_000


@dataclass(frozen=True, slots=True)
class PidTarget:
    """A process with all its descendants."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class CgroupTarget:
    """A cgroup's directory with all cgroups below it."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """Every socket of a network namespace."""

    name: str
    path: str


TargetSpec = PidTarget | CgroupTarget | NetnsTarget


@dataclass(frozen=True, slots=True)
class MeasurementRequest:
    """The targets and settings of a run.

    `max_cpu_percent`: budget of the eBPF programs, in percent of one core; 0 means no limit.
    """

    targets: tuple[TargetSpec, ...]
    modules: tuple[Module, ...]
    ports: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    interval_ns: int = LONGEST_INTERVAL_NS
    max_cpu_percent: float = 0.0


class ProtocolVersionError(RuntimeError):
    """An agent whose protocol differs from this command's."""

    def __init__(self, theirs: int, agent_version: str) -> None:
        self.theirs, self.agent_version = theirs, agent_version
        super().__init__(
            f"the agent (version {agent_version}) uses protocol {theirs}, this command uses "
            f"{PROTOCOL_VERSION}; install both from the same release"
        )


class NoTargetError(RuntimeError):
    """A run without a measurable target. `problems` holds the agent's message on each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "no target can be measured:" + "".join(f"\n  {each}" for each in self.problems)
        )


@dataclass(slots=True)
class _Seen:
    """The facts on one target so far."""

    spec: TargetSpec
    measurement: Measurement = NOTHING
    pids: set[int] = field(default_factory=set)
    omitted_pids: int = 0
    cgroup: str = ""
    cgroups: dict[int, Cgroup] = field(default_factory=dict)
    state: TargetState = TargetState.PENDING
    message: str = ""

    def take_status(self, status: pb.TargetStatus) -> None:
        self.state = target_state_from_proto(status.state)
        self.message = printable(status.message)
        self.pids.update(status.pids)
        self.omitted_pids = max(self.omitted_pids, status.omitted_pids)
        self.cgroup = printable(status.cgroup) or self.cgroup

    @property
    def problem(self) -> str:
        """The reason for which it is not measured; empty if it is, or if it has ended."""
        if self.state is TargetState.ATTACHED:
            return ""
        if self.state is TargetState.GONE and self.measurement:
            return ""
        return self.message or self.state.lower()

    def named(self, message: str) -> str:
        """Return a message with the target's name, unless it begins with it: that of a path."""
        name = self.spec.name
        return message if message.startswith((f"{name} ", f"{name}:")) else f"{name}: {message}"


class _Mean:
    """The mean of figures; None without any."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None

    def add(self, figure: float) -> None:
        self._sum += figure
        self._count += 1


class Session:
    """A measurement from `attach` to the last report. `report` covers everything so far."""

    def __init__(self, channel: grpc.aio.Channel, request: MeasurementRequest) -> None:
        self._stub = rpc.NodeAgentStub(channel)
        self._request = request
        self._targets = {str(index): _Seen(spec) for index, spec in enumerate(request.targets)}
        self._node = Node("", "", "", "", "", "")
        self._node_measurement = NOTHING_OF_THE_NODE
        self._covered = (
            *(stage.name for stage in stages_of(request.modules)),
            *counters_of(request.modules),
        )
        self._coverage: dict[str, StageCoverage] = {}
        self._overhead: ProgramsOverhead | None = None
        self._cost = _Mean()
        self._measured_until = 0.0
        self._attached_at = 0.0
        self._progress = asyncio.Condition()

    async def attach(self) -> None:
        """Have the targets measured; return once they are, or will be from their first packet.

        Raises ProtocolVersionError, and NoTargetError if no target can be measured.
        """
        info = await self._stub.GetNodeInfo(pb.GetNodeInfoRequest(), wait_for_ready=True)
        if info.protocol_version != PROTOCOL_VERSION:
            raise ProtocolVersionError(info.protocol_version, printable(info.agent_version))
        self._node = _node(info)
        result = await self._stub.Apply(_desired_state(self._request))
        self._take_coverage(result.coverage)
        for probe in result.probes:
            for status in probe.targets:
                self._seen(status.id).take_status(status)
        over = {TargetState.GONE, TargetState.FAILED}
        if all(seen.state in over for seen in self._targets.values()):
            raise NoTargetError(self.problems)
        self._attached_at = self._measured_until = time.monotonic()

    async def watch(self, on_report: Callable[[], None]) -> None:
        """Add up what the agent reports until the stream ends; `on_report` after each."""
        # It acknowledges none, since it never reconnects.
        opened = self._stub.WatchReports(iter([pb.WatchReportsRequest()]))
        async for message in opened:
            if message.generation != GENERATION:
                continue
            self._take_coverage(message.coverage)
            if message.HasField("overhead"):
                self._take_overhead(overhead_from_proto(message.overhead))
            for probe in message.probes:
                self._take(probe)
            on_report()
            async with self._progress:
                self._progress.notify_all()

    async def seen_until_now(self) -> None:
        """Wait until everything that happened before this call is added up."""
        at = time.monotonic()
        async with self._progress:
            await self._progress.wait_for(lambda: self._measured_until >= at)

    async def every_target_gone(self) -> None:
        """Wait until no target is left that can still be measured."""
        over = {TargetState.GONE, TargetState.FAILED}
        async with self._progress:
            await self._progress.wait_for(
                lambda: all(seen.state in over for seen in self._targets.values())
            )

    @property
    def problems(self) -> tuple[str, ...]:
        """The name of each target that is not measured, and the reason."""
        return tuple(seen.named(seen.problem) for seen in self._targets.values() if seen.problem)

    @property
    def farewells(self) -> tuple[str, ...]:
        """The name of each target that has ended, and its message."""
        return tuple(
            seen.named(seen.message or "is gone")
            for seen in self._targets.values()
            if seen.state is TargetState.GONE
        )

    def report(self) -> LatencyReport:
        """Return the report of everything so far."""
        return LatencyReport(
            node=replace(
                self._node, report=report_on_node(self._node_measurement, self._request.modules)
            ),
            duration_seconds=self._measured_until - self._attached_at,
            targets=tuple(map(self._result, self._targets.values())),
            coverage=tuple(
                self._coverage[name] for name in self._covered if name in self._coverage
            ),
            overhead=self._overhead,
        )

    def _result(self, seen: _Seen) -> TargetResult:
        return TargetResult(
            name=seen.spec.name,
            pids=tuple(sorted(seen.pids)),
            omitted_pids=seen.omitted_pids,
            cgroup=seen.cgroup,
            report=_with_paths(
                report_on(
                    seen.measurement,
                    self._request.modules,
                    self._node_measurement,
                    uncounted={
                        name
                        for name, coverage in self._coverage.items()
                        if coverage.state is CoverageState.UNAVAILABLE
                    },
                ),
                seen.cgroups.values(),
            ),
            message=seen.problem,
        )

    def _take(self, probe: pb.ProbeReport) -> None:
        for target in probe.targets:
            seen = self._seen(target.status.id)
            seen.take_status(target.status)
            measured = measurement_from_proto(target.stages, target.counters, target.netns_counters)
            pending = pending_from_proto(target.pending, "pending")
            peers = peers_from_proto(target.peers, "peers")
            cgroups = cgroups_from_proto(target.cgroups, measured.counters, "cgroups")
            seen.cgroups |= {cgroup.id: cgroup for cgroup in cgroups}
            seen.measurement += replace(measured, pending=pending, peers=peers)
        self._node_measurement += node_from_proto(probe.node)
        if not probe.more:
            end = _monotonic(probe.end.ToNanoseconds())
            self._measured_until = max(self._measured_until, end)

    def _seen(self, target_id: str) -> _Seen:
        try:
            return self._targets[target_id]
        except KeyError:
            raise CorruptMessageError("target.status.id", f"unknown target {target_id!r}") from None

    def _take_coverage(self, stages: Iterable[pb.StageCoverage]) -> None:
        """Store the coverage of our stages, except IDLE, which follows the end of all targets."""
        for stage in map(coverage_from_proto, stages):
            if stage.name in self._covered and stage.state is not CoverageState.IDLE:
                self._coverage[stage.name] = stage

    def _take_overhead(self, overhead: ProgramsOverhead) -> None:
        """Store the newest figures of the programs, with the mean cost of all reports."""
        if overhead.cpu_percent is not None:
            self._cost.add(overhead.cpu_percent)
        self._overhead = replace(overhead, cpu_percent=self._cost.value)


def _with_paths(report: TargetReport, cgroups: Iterable[Cgroup]) -> TargetReport:
    """Return the report with the paths of the cgroups that the target waited for as names."""
    known = tuple(each for each in cgroups if each.path)
    paths = {each.id: cgroup_text(each.path) for each in known}
    return named(replace(report, cgroups=known), Names(cgroups=paths))


def _monotonic(unix_ns: int) -> float:
    """Return a recent time of the wall clock as that of the monotonic one, which is never set.

    It is never later than now: the wall clock may have been set back since then.
    """
    now = time.monotonic()
    return min(now + (unix_ns - time.time_ns()) / 1e9, now)


def _node(info: pb.NodeInfo) -> Node:
    return Node(
        name=printable(info.node_name),
        kernel=printable(info.kernel_release),
        architecture=printable(info.architecture),
        kernel_types=printable(info.kernel_types),
        cgroup_version=printable(info.cgroup_version),
        agent_version=printable(info.agent_version),
    )


def _desired_state(request: MeasurementRequest) -> pb.DesiredState:
    interval = Duration()
    interval.FromNanoseconds(min(request.interval_ns, LONGEST_INTERVAL_NS))
    probe = pb.Probe(
        id=PROBE_ID,
        name=PROBE_ID,
        modules=list(request.modules),
        filter=pb.SocketFilter(ports=request.ports, protocols=request.protocols),
        interval=interval,
        max_cpu_percent=request.max_cpu_percent,
        targets=[_target(str(index), spec) for index, spec in enumerate(request.targets)],
        node_figures=True,
    )
    return pb.DesiredState(generation=GENERATION, probes=[probe])


def _target(identifier: str, spec: TargetSpec) -> pb.Target:
    match spec:
        case PidTarget(pid=pid):
            return pb.Target(id=identifier, pid=pid)
        case CgroupTarget(path=path):
            return pb.Target(id=identifier, cgroup_path=os.fsencode(path))
        case NetnsTarget(path=path):
            return pb.Target(id=identifier, netns_path=os.fsencode(path))
