"""A session with an agent of the same machine, whose wall clock is set while it measures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.overhead import HookOverhead, ProgramsOverhead
from latencyprobe.domain.stages import Module
from latencyprobe.local import session as sessions
from latencyprobe.local.session import (
    CgroupTarget,
    MeasurementRequest,
    NoTargetError,
    PidTarget,
    Session,
)
from latencyprobe.protocol.measurements import PROTOCOL_VERSION, measurement_to_proto
from latencyprobe.protocol.overhead import overhead_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc
from latencyprobe_agent.serving.requests import parse_desired
from tests.unit.agent.running import until

HOUR_S = 3600.0


@dataclass
class Machine:
    """Its clocks, and an agent that reports when the test says so."""

    monotonic_s: float = 5000.0
    wall_s: float = 1.7e9
    reports: asyncio.Queue[pb.Report] = field(default_factory=asyncio.Queue)
    desired: pb.DesiredState = field(default_factory=pb.DesiredState)
    target: pb.TargetStatus = field(
        default_factory=lambda: pb.TargetStatus(id="0", state=pb.TargetStatus.ATTACHED)
    )

    def monotonic(self) -> float:
        return self.monotonic_s

    def time(self) -> float:
        return self.wall_s

    def time_ns(self) -> int:
        return round(self.wall_s * 1e9)

    def passes(self, seconds: float, *, more: bool = False) -> None:
        """Let the time pass, and have the agent read its programs at the end of it.

        `more`: the report has another part.
        """
        self.monotonic_s += seconds
        self.wall_s += seconds
        report = pb.Report(generation=1, probes=[pb.ProbeReport(id="local", more=more)])
        report.probes[0].begin.FromNanoseconds(self.time_ns() - round(seconds * 1e9))
        report.probes[0].end.FromNanoseconds(self.time_ns())
        self.reports.put_nowait(report)

    async def GetNodeInfo(self, *_: object, **__: object) -> pb.NodeInfo:  # noqa: N802
        return pb.NodeInfo(protocol_version=PROTOCOL_VERSION)

    async def Apply(self, desired: pb.DesiredState) -> pb.ApplyResult:  # noqa: N802
        self.desired = desired
        return pb.ApplyResult(probes=[pb.ProbeStatus(id="local", targets=[self.target])])

    async def WatchReports(self, _: object) -> AsyncIterator[pb.Report]:  # noqa: N802
        while True:
            yield await self.reports.get()


@dataclass
class Measuring:
    """A session that has taken in what was reported so far."""

    machine: Machine
    session: Session
    taken: int = 0

    async def second(self) -> None:
        """Measure for a second, and wait for its report."""
        before = self.taken
        self.machine.passes(1)
        await until(lambda: self.taken > before, "the report")

    @property
    def duration_s(self) -> float:
        return self.session.report().duration_seconds

    def count(self) -> None:
        self.taken += 1


@pytest.fixture
async def measuring(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Measuring]:
    machine = Machine()
    monkeypatch.setattr(sessions, "time", machine)
    monkeypatch.setattr(rpc, "NodeAgentStub", lambda _: machine)
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        request = MeasurementRequest((PidTarget("p", 1),), (Module.RX,), max_cpu_percent=0.5)
        measuring = Measuring(machine, Session(channel, request))
        await measuring.session.attach()
        watching = asyncio.create_task(measuring.session.watch(measuring.count))
        yield measuring
        watching.cancel()
        await asyncio.wait({watching})


@pytest.mark.parametrize(
    ("name", "message", "told"),
    [
        ("/cg/x", "/cg/x does not exist; cgroups are below /cg", "/cg/x does not exist; cgroups"),
        ("/run/n", "/run/n: Permission denied", "/run/n: Permission denied"),
        ("x", "/cg/x does not exist", "x: /cg/x does not exist"),
        ("nginx[4]", "there is no process 4", "nginx[4]: there is no process 4"),
    ],
)
async def test_a_target_that_cannot_be_measured_is_named_once(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str, told: str
) -> None:
    failed = pb.TargetStatus(id="0", state=pb.TargetStatus.FAILED, message=message)
    monkeypatch.setattr(rpc, "NodeAgentStub", lambda _: Machine(target=failed))
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        session = Session(channel, MeasurementRequest((CgroupTarget(name, "/p"),), (Module.RX,)))
        with pytest.raises(NoTargetError) as raised:
            await session.attach()
    (problem,) = raised.value.problems
    assert problem.startswith(told)


async def test_a_target_that_is_awaited_is_no_reason_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = pb.TargetStatus(id="0", state=pb.TargetStatus.PENDING, message="no processes yet")
    monkeypatch.setattr(rpc, "NodeAgentStub", lambda _: Machine(target=waits))
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        session = Session(channel, MeasurementRequest((CgroupTarget("x", "/p"),), (Module.RX,)))
        await session.attach()
    assert session.problems == ("x: no processes yet",)


async def test_the_report_has_the_mean_cost_of_the_programs_and_the_newest_hooks(
    measuring: Measuring,
) -> None:
    assert measuring.session.report().overhead is None
    for cpu_percent, hook in ((0.5, "tp_btf/a"), (None, "tp_btf/b"), (1.5, "tp_btf/c\x1b")):
        sent = ProgramsOverhead(
            cpu_percent, 90.5, "", ("tx",), (HookOverhead(hook, 0.25, permanent=True),)
        )
        measuring.machine.reports.put_nowait(
            pb.Report(generation=1, overhead=overhead_to_proto(sent))
        )
    expected = HookOverhead("tp_btf/c\\x1b", 0.25, permanent=True)
    await until(lambda: expected in hooks_of(measuring), "the last report")
    overhead = measuring.session.report().overhead
    assert overhead == ProgramsOverhead(1.0, 90.5, "", (Module.TX,), (expected,))


async def test_a_neighbour_has_the_path_of_its_cgroup_as_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    monkeypatch.setattr(sessions, "time", machine)
    monkeypatch.setattr(rpc, "NodeAgentStub", lambda _: machine)
    late = StageMeasurement(Histogram.of([9_000_000] * 200))
    stages = dict.fromkeys(("rx.socket", "rx.total", "rx.wakeup", "sched.runqueue"), late)
    counters = {"waitedForOthersNs": 10**9, "waitedForCgroup.7": 10**9, "waitedForCgroup.8": 1}
    deltas, counts = measurement_to_proto(Measurement(stages, counters))
    report = pb.TargetReport(
        status=machine.target,
        stages=deltas,
        counters=counts,
        cgroups=[pb.Cgroup(id=7, path="/system.slice/backup.service"), pb.Cgroup(id=8)],
    )
    probes = [pb.ProbeReport(id="local", targets=[report])]
    machine.reports.put_nowait(pb.Report(generation=1, probes=probes))
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        modules = (Module.RX, Module.SCHED)
        session = Session(channel, MeasurementRequest((PidTarget("p", 1),), modules))
        await session.attach()
        seen = asyncio.Event()
        watching = asyncio.create_task(session.watch(seen.set))
        await seen.wait()
        watching.cancel()
    (target,) = session.report().targets
    name = "cgroup /system.slice/backup.service"
    assert target.report.verdict.bottleneck is Bottleneck.NOISY_NEIGHBOUR
    assert target.report.verdict.culprit == name
    assert f"the longest for {name}" in target.report.verdict.evidence
    assert [(each.id, each.name) for each in target.report.cgroups] == [(7, name)]


def hooks_of(measuring: Measuring) -> tuple[HookOverhead, ...]:
    overhead = measuring.session.report().overhead
    return overhead.hooks if overhead is not None else ()


async def test_the_agent_gets_the_budget(measuring: Measuring) -> None:
    (probe,) = parse_desired(measuring.machine.desired).probes
    assert probe.max_cpu_percent == 0.5


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_the_duration_is_that_of_the_measurement_and_not_of_the_wall_clock(
    measuring: Measuring, jump_s: float
) -> None:
    await measuring.second()
    measuring.machine.wall_s += jump_s
    await measuring.second()
    assert measuring.duration_s == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_the_last_figures_are_waited_for_and_no_longer(
    measuring: Measuring, jump_s: float
) -> None:
    await measuring.second()
    measuring.machine.monotonic_s += 0.5
    measuring.machine.wall_s += 0.5 + jump_s
    waiting = asyncio.create_task(measuring.session.seen_until_now())
    await asyncio.sleep(0)
    assert not waiting.done()
    await measuring.second()
    await asyncio.wait_for(waiting, 10)


async def test_a_clock_that_is_set_before_a_report_arrives_stretches_nothing(
    measuring: Measuring,
) -> None:
    await measuring.second()
    measuring.machine.passes(1)
    measuring.machine.wall_s -= HOUR_S
    await until(lambda: measuring.taken == 2, "the report")
    assert measuring.duration_s == pytest.approx(2, abs=1e-3)


async def test_the_last_figures_are_there_with_the_last_part_of_their_report(
    measuring: Measuring,
) -> None:
    measuring.machine.monotonic_s += 1
    measuring.machine.wall_s += 1
    waiting = asyncio.create_task(measuring.session.seen_until_now())
    await asyncio.sleep(0)
    measuring.machine.passes(0, more=True)
    await until(lambda: measuring.taken == 1, "the first part")
    assert not waiting.done()
    assert measuring.duration_s == 0
    measuring.machine.passes(0)
    await asyncio.wait_for(waiting, 10)
    assert measuring.duration_s == pytest.approx(1, abs=1e-3)
