"""The service over real gRPC: applying, reporting, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latencyprobe import __version__
from latencyprobe.domain.fairness import MAX_PROBES
from latencyprobe.domain.measurement import (
    NOTHING,
    NOTHING_OF_THE_NODE,
    Measurement,
    NodeMeasurement,
    NodeStage,
    total,
)
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe.protocol.measurements import (
    PROTOCOL_VERSION,
    measurement_from_proto,
    node_from_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent import agent, plan, reconciler
from latencyprobe_agent.control import PATIENCE
from latencyprobe_agent.desired import PidSelector
from latencyprobe_agent.kernel.contract import ASSUMED_DISPATCH_NS, HookCost
from latencyprobe_agent.serving.reports import ReportPump
from latencyprobe_agent.serving.requests import parse_desired
from tests.patience import patient
from tests.unit.agent.running import Running, next_reading, until
from tests.unit.agent.scripted import samples
from tests.unit.agent.states import probe, seconds, state

if TYPE_CHECKING:
    Stream = grpc.aio.StreamStreamCall[pb.WatchReportsRequest, pb.Report]


def measured(report: pb.ProbeReport) -> Measurement:
    """The figures of the report's one target."""
    (target,) = report.targets
    return measurement_from_proto(target.stages, target.counters)


def watch(running: Running) -> Stream:
    """Open a stream of reports."""
    call: Any = running.stub.WatchReports(iter([pb.WatchReportsRequest()]))
    return cast("Stream", call)


async def reports(stream: Stream) -> AsyncIterator[pb.Report]:
    """The reports of a stream, which `read` may have been called on."""
    async with asyncio.timeout(10):
        while isinstance(report := await stream.read(), pb.Report):
            yield report


async def next_report(stream: Stream) -> pb.Report:
    """The next report; the stream must not have ended."""
    report = await stream.read()
    assert isinstance(report, pb.Report)
    return report


async def gather(stream: Stream, enough: Measurement, probe_id: str = "p") -> Measurement:
    """Add up one probe's figures until they are this much; more is an error at the caller's."""
    seen = NOTHING
    async for report in reports(stream):
        for one in report.probes:
            seen += measured(one) if one.id == probe_id else NOTHING
        if seen.stage("rx.total").histogram.count >= enough.stage("rx.total").histogram.count:
            break
    return seen


async def test_the_node_says_what_it_is(running: Running) -> None:
    info = await running.stub.GetNodeInfo(pb.GetNodeInfoRequest())
    assert (info.node_name, info.agent_version) == ("blue", __version__)
    assert info.protocol_version == PROTOCOL_VERSION
    assert info.instance_id == running.agent.instance_id
    assert {stage.state for stage in info.coverage} == {pb.StageCoverage.IDLE}


async def test_apply_answers_once_attached(running: Running) -> None:
    result = await running.stub.Apply(state(probe(modules=("rx",))))
    (target,) = result.probes[0].targets
    assert target.state == pb.TargetStatus.ATTACHED, target.message
    assert os.getpid() in target.pids
    assert running.engine.modules == {Module.RX}
    assert os.getpid() in running.engine.slots[0].tgids
    coverage = {stage.name: stage.state for stage in result.coverage}
    assert coverage["rx.total"] == pb.StageCoverage.ACTIVE
    assert coverage["tx.total"] == pb.StageCoverage.IDLE


async def test_a_stream_begins_with_the_coverage_and_goes_on_with_figures(
    running: Running,
) -> None:
    await running.stub.Apply(state(probe()))
    stream = watch(running)
    first = await next_report(stream)
    assert (first.sequence, first.generation, len(first.probes)) == (1, 1, 0)
    assert len(first.coverage) > 0
    running.engine.measure(samples(100, 200))
    assert await gather(stream, samples(1, 2)) == samples(100, 200)
    later = await next_report(stream)
    assert not later.coverage
    assert later.overhead.measured
    assert later.overhead.cpu_percent == pytest.approx(0.5)
    assert later.probes[0].targets[0].status.state == pb.TargetStatus.ATTACHED
    assert later.probes[0].begin.ToNanoseconds() < later.probes[0].end.ToNanoseconds()


async def test_two_probes_on_a_process_cost_one_slot_and_both_report(running: Running) -> None:
    await running.stub.Apply(state(probe("p"), probe("q", modules=("rx",))))
    assert len(running.engine.slots) == 1
    running.engine.measure(samples(100) + samples(5, stage="tcp.rtt"))
    stream = watch(running)
    seen: dict[str, Measurement] = {}
    async for report in reports(stream):
        for one in report.probes:
            seen[one.id] = seen.get(one.id, NOTHING) + measured(one)
        if all(seen.get(name) for name in "pq"):
            break
    assert seen == {"p": samples(100) + samples(5, stage="tcp.rtt"), "q": samples(100)}


async def test_figures_of_the_node_and_its_namespaces_come_along(
    running: Running,
) -> None:
    await running.stub.Apply(state(probe("p"), probe("q", modules=("rx",))))
    stage = samples(7).stage("rx.total")
    running.engine.node = NodeMeasurement(
        {NodeStage("rx.total", "eth0"): stage, NodeStage("tcp.rtt", "x"): stage},
        {"softnetTimeSqueezed": 3},
    )
    running.engine.measure(Measurement(netns_counters={"TcpExtListenDrops": 2}))
    stream = watch(running)
    node: dict[str, NodeMeasurement] = {}
    netns: dict[str, dict[str, int]] = {}
    async for report in reports(stream):
        for one in report.probes:
            node[one.id] = node.get(one.id, NOTHING_OF_THE_NODE) + node_from_proto(one.node)
            netns.setdefault(one.id, {}).update(one.targets[0].netns_counters)
        if all(node.get(name) for name in "pq"):
            break
    assert node["p"].stages == {NodeStage("rx.total", "eth0"): stage, ("tcp.rtt", "x"): stage}
    assert node["q"].stages == {NodeStage("rx.total", "eth0"): stage}
    assert node["p"].counters == node["q"].counters == {"softnetTimeSqueezed": 3}
    assert netns["p"] == netns["q"] == {"TcpExtListenDrops": 2}


async def test_evidence_is_gathered_for_the_time_of_each_report(running: Running) -> None:
    inode = os.stat("/proc/self/ns/net").st_ino
    running.evidence.counters[inode] = {"TcpExtListenDrops": 100}
    running.evidence.node = {"softnetDropped": 100}
    await running.stub.Apply(state(probe("p"), probe("q", interval_s=0.3)))
    stream = watch(running)
    running.evidence.counters[inode] = {"TcpExtListenDrops": 103}
    running.evidence.node = {"softnetDropped": 105}
    netns: dict[str, int] = {"p": 0, "q": 0}
    node: dict[str, int] = {"p": 0, "q": 0}
    ends = 0
    async for report in reports(stream):
        for one in report.probes:
            netns[one.id] += one.targets[0].netns_counters.get("TcpExtListenDrops", 0)
            node[one.id] += one.node.counters.get("softnetDropped", 0)
            ends += one.id == "q"
        if ends == 3:
            break
    assert netns == {"p": 3, "q": 3}
    assert node == {"p": 5, "q": 5}
    assert os.getpid() in running.evidence.read[0].pids


async def test_a_probe_without_node_figures_gets_nothing_of_the_node_or_its_namespace(
    running: Running,
) -> None:
    inode = os.stat("/proc/self/ns/net").st_ino
    modules = ("rx", "irq")
    hidden = probe("hidden", modules=modules, node_figures=False)
    await running.stub.Apply(state(hidden))
    assert running.engine.modules == {Module.RX}
    running.evidence.counters[inode] = {"TcpExtListenDrops": 100}
    await running.stub.Apply(state(hidden, probe("shown", modules=modules), generation=2))
    assert running.engine.modules == {Module.RX, Module.IRQ}
    stream = watch(running)
    stage = NodeMeasurement({NodeStage("irq.hard", "eth0"): samples(7).stage("rx.total")})
    running.engine.node = stage
    running.evidence.node = {"softnetDropped": 5}
    running.evidence.counters[inode] = {"TcpExtListenDrops": 103}
    seen: dict[str, pb.ProbeReport] = {name: pb.ProbeReport() for name in ("hidden", "shown")}
    ends = 0
    async for report in reports(stream):
        for one in report.probes:
            seen[one.id].MergeFrom(one)
            ends += one.id == "hidden"
        shown = seen["shown"]
        if ends >= 3 and shown.node.stages and shown.targets[-1].status.id:
            break
    assert any(each.netns_counters for each in seen["shown"].targets)
    assert seen["shown"].node.counters["softnetDropped"] == 5
    assert not seen["hidden"].HasField("node")
    assert not any(each.netns_counters for each in seen["hidden"].targets)


async def test_the_cgroups_of_a_target_are_evidence_for_each_of_its_probes(
    running: Running,
) -> None:
    target = PidSelector(os.getpid())
    running.evidence.cgroups[target] = {"cpuThrottledNs": 100}
    hidden = probe("hidden", modules=("tcp",), node_figures=False)
    await running.stub.Apply(state(probe("p", interval_s=60), hidden))
    running.evidence.cgroups[target] = {"cpuThrottledNs": 103}
    await running.stub.Apply(state(probe("p", interval_s=0.1), hidden, probe("q"), generation=2))
    stream = watch(running)
    running.evidence.cgroups[target] = {"cpuThrottledNs": 105}
    seen = dict.fromkeys(("p", "hidden", "q"), 0)
    async for report in reports(stream):
        for one in report.probes:
            seen[one.id] += one.targets[0].counters.get("cpuThrottledNs", 0)
        if all(seen.values()):
            break
    assert seen == {"p": 5, "hidden": 5, "q": 2}


async def test_evidence_from_before_a_probe_came_is_not_its_own(running: Running) -> None:
    inode = os.stat("/proc/self/ns/net").st_ino
    await running.stub.Apply(state(probe("p", interval_s=60)))
    running.evidence.counters[inode] = {"TcpExtListenDrops": 7}
    running.evidence.node = {"softnetDropped": 7}
    await running.stub.Apply(state(probe("p", interval_s=0.1), probe("q"), generation=2))
    stream = watch(running)
    seen: dict[str, pb.ProbeReport] = {}
    async for report in reports(stream):
        for one in report.probes:
            seen.setdefault(one.id, one)
        if len(seen) == 2:
            break
    assert seen["p"].targets[0].netns_counters == {"TcpExtListenDrops": 7}
    assert seen["p"].node.counters == {"softnetDropped": 7}
    assert not seen["q"].targets[0].netns_counters
    assert not seen["q"].node.counters


async def test_with_nothing_to_measure_no_evidence_is_read(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    await next_reading(running.engine)
    await running.stub.Apply(state(generation=2))
    read = len(running.evidence.read)
    # Another state with nothing in it: the agent has been through its rounds.
    await running.stub.Apply(state(generation=3))
    assert len(running.evidence.read) == read
    assert running.agent.readings.next_at is None


async def test_figures_wait_for_a_client_and_come_once(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    for duration_ns in (100, 200, 300):
        running.engine.measure(samples(duration_ns))
        await next_reading(running.engine)
    stream = watch(running)
    assert await gather(stream, samples(1, 2, 3)) == samples(100, 200, 300)
    # Another one is under way: the agent knows of the delivery of those before it.
    await next_report(stream)
    stream.cancel()
    again = watch(running)
    assert (await next_report(again)).sequence == 1
    running.engine.measure(samples(400))
    assert await gather(again, samples(1)) == samples(400)


async def test_a_second_stream_ends_the_first(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    first = watch(running)
    await next_report(first)
    second = watch(running)
    await next_report(second)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in reports(first):
            pass
    assert ended.value.code() == grpc.StatusCode.ABORTED
    running.engine.measure(samples(100))
    assert await gather(second, samples(1)) == samples(100)


async def test_an_older_generation_is_refused_and_changes_nothing(running: Running) -> None:
    await running.stub.Apply(state(probe(), generation=5))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(state(generation=4))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "generation 4 is older than 5" in (refused.value.details() or "")
    assert len(running.engine.slots) == 1
    assert (await running.stub.Apply(state(probe(), generation=5))).generation == 5


async def test_a_contradiction_is_refused_by_field_and_changes_nothing(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    broken = state(probe(), probe("q"), probe("q"), generation=2)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(broken)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "probes[2].id" in (refused.value.details() or "")
    assert len(running.engine.slots) == 1
    assert (await running.stub.Apply(state(probe()))).generation == 1


def targets_of(result: pb.ApplyResult) -> dict[str, list[pb.TargetStatus]]:
    """The answer to an Apply, by probe."""
    return {one.id: list(one.targets) for one in result.probes}


async def test_an_invalid_probe_or_target_fails_alone(running: Running) -> None:
    bad_target = pb.Target(
        id="c", container=pb.Container(pod_uid="../..", container_id="containerd://x")
    )
    in_part, wholly = probe("in-part"), probe("wholly", ports=(0,))
    in_part.targets.append(bad_target)
    answer = targets_of(await running.stub.Apply(state(probe("sound"), in_part, wholly)))
    attached, failed = pb.TargetStatus.ATTACHED, pb.TargetStatus.FAILED
    assert {name: [t.state for t in each] for name, each in answer.items()} == {
        "sound": [attached],
        "in-part": [attached, failed],
        "wholly": [failed],
    }
    assert answer["in-part"][1].message.startswith("targets[1].container.pod_uid: '../..'")
    assert answer["wholly"][0].message == "filter.ports[0]: 0: must be from 1 to 65535"
    failures = running.metrics.registry.get_sample_value(
        "latencyprobe_targets", {"state": "failed"}
    )
    assert failures == 2


def crowd(namespace: str, probes: int, pids: Sequence[int]) -> list[pb.Probe]:
    """Probes of a namespace, all on the same processes."""
    targets = [pb.Target(id=f"t{pid}", pid=pid) for pid in pids]
    return [
        pb.Probe(
            id=f"{namespace}-{n}",
            name=f"{namespace}/{n}",
            namespace=namespace,
            modules=("rx",),
            interval=seconds(60),
            targets=targets,
        )
        for n in range(probes)
    ]


@pytest.mark.parametrize("probes", [257, MAX_PROBES + 100])
async def test_any_number_of_probes_of_a_namespace_leaves_the_victim_measured(
    running: Running, probes: int
) -> None:
    flood, victim = crowd("flood", probes, [os.getpid()]), probe("victim")
    victim.name = "bank/victim"
    answer = targets_of(await running.stub.Apply(state(*flood, victim)))
    states = {name: [t.state for t in each] for name, each in answer.items()}
    assert states.pop("victim") == [pb.TargetStatus.ATTACHED]
    surplus = max(probes + 1 - MAX_PROBES, 0)
    assert list(states.values()).count([pb.TargetStatus.FAILED]) == surplus
    assert list(states.values()).count([pb.TargetStatus.ATTACHED]) == probes - surplus
    running.engine.measure(samples(100))
    assert await gather(watch(running), samples(1), "victim") == samples(100)


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Eight processes that wait."""
    with contextlib.ExitStack() as stack:
        sleepers = [stack.enter_context(subprocess.Popen(["sleep", "infinity"])) for _ in range(8)]
        yield [sleeper.pid for sleeper in sleepers]
        for sleeper in sleepers:
            sleeper.kill()


async def test_ten_probes_over_all_pods_share_their_slots(
    running: Running, processes: list[int]
) -> None:
    probes = crowd("shop", 10, [*processes, *range(4_000_000, 4_000_102)])
    answer = targets_of(await running.stub.Apply(state(*probes)))
    assert [len(each) for each in answer.values()] == [110] * 10
    assert "already measures" not in str(answer)
    assert len(running.engine.slots) == 8


async def test_a_namespace_that_comes_later_gets_its_share_of_the_slots_and_gives_it_back(
    running: Running, processes: list[int]
) -> None:
    running.agent._reconciler._slots._table = plan.SlotTable(size=4)
    first, second = crowd("first", 1, processes[:6]), crowd("second", 1, processes[6:])

    def attached(result: pb.ApplyResult) -> dict[str, set[str]]:
        return {
            one.id: {t.id for t in one.targets if t.state == pb.TargetStatus.ATTACHED}
            for one in result.probes
        }

    alone = attached(await running.stub.Apply(state(*first)))["first-0"]
    assert len(alone) == 4
    answer = await running.stub.Apply(state(*first, *second, generation=2))
    both = attached(answer)
    assert len(both["second-0"]) == 2
    assert both["first-0"] < alone
    assert len(both["first-0"]) == 2
    (text,) = {t.message for one in answer.probes for t in one.targets if t.message}
    assert text.startswith("this node already measures 4 targets, which is the maximum; ")
    assert "the share of namespace first is 2" in text
    again = attached(await running.stub.Apply(state(*first, generation=3)))["first-0"]
    assert len(again) == 4
    assert both["first-0"] < again


async def test_a_refusal_of_the_kernel_is_reported_and_the_state_before_stays(
    running: Running,
) -> None:
    await running.stub.Apply(state(probe(modules=("rx",))))
    running.engine.refusal = "BPF_PROG_LOAD: Operation not permitted"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(state(probe(modules=("tcp",)), generation=2))
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    assert refused.value.details() == "BPF_PROG_LOAD: Operation not permitted"
    running.engine.refusal = None
    await until(lambda: running.engine.modules == {Module.RX}, "the state before restored")
    assert (await running.stub.Apply(state(probe(modules=("tcp",)), generation=2))).generation == 2


async def test_a_bug_is_an_internal_error_and_the_agent_lives(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.engine.bug = KeyError("slot")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(state(probe()))
    assert refused.value.code() == grpc.StatusCode.INTERNAL
    assert "KeyError" in (refused.value.details() or "")
    assert "Traceback" in caplog.text
    running.engine.bug = None
    assert (await running.stub.Apply(state(probe()))).probes[0].targets


async def test_a_cancelled_apply_leaves_the_state_before(
    running: Running, processes: list[int]
) -> None:
    await running.stub.Apply(state(probe("p", modules=("rx",), pid=processes[0])))
    slots = running.engine.slots
    running.engine.stall = asyncio.Event()
    other = parse_desired(state(probe("q", modules=("tcp",), pid=processes[1]), generation=2))
    apply = asyncio.create_task(running.agent.apply(other))
    await until(lambda: running.engine.stalled == 1, "the new modules to be loaded")
    apply.cancel()
    await until(lambda: running.engine.stalled == 2, "the modules before to be loaded")
    apply.cancel()
    running.engine.stall.set()
    with pytest.raises(asyncio.CancelledError):
        await apply
    assert running.engine.modules == {Module.RX}
    assert running.engine.slots == slots
    running.engine.measure(samples(100))
    stream = watch(running)
    assert await gather(stream, samples(1)) == samples(100)
    again = await running.stub.Apply(state(probe("p", pid=processes[0])))
    assert again.probes[0].targets[0].state == pb.TargetStatus.ATTACHED


@pytest.fixture
def soon_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without a wait; to be made before the agent."""
    monkeypatch.setattr(reconciler, "_FIRST_RETRY_S", 0.05)


@pytest.mark.usefixtures("soon_retried")
async def test_a_bug_in_an_apply_leaves_the_state_before(
    running: Running, processes: list[int]
) -> None:
    await running.stub.Apply(state(probe("p", pid=processes[0])))
    measured = [*running.engine.slots.values()]
    running.engine.bug = KeyError("slot")
    with pytest.raises(grpc.aio.AioRpcError):
        await running.stub.Apply(state(probe("q", pid=processes[1]), generation=2))
    running.engine.slots = {}
    running.engine.bug = None
    await until(lambda: [*running.engine.slots.values()] == measured, "the state before restored")
    assert running.agent.generation == 1


async def test_a_failed_apply_leaves_the_orphans_of_a_process_that_has_exited(
    running: Running, processes: list[int]
) -> None:
    shell = await asyncio.create_subprocess_shell(
        "sleep infinity & echo $!; wait", stdout=asyncio.subprocess.PIPE
    )
    assert shell.stdout is not None
    orphan = int(await shell.stdout.readline())
    try:
        await running.stub.Apply(state(probe(pid=shell.pid)))
        shell.kill()
        await until(lambda: measured_processes(running) == {orphan}, "the shell's end noticed")
        running.engine.refusal = "no memory"
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.Apply(state(probe(pid=processes[0], modules=("irq",))))
        running.engine.refusal = None
        assert measured_processes(running) == {orphan}
        await next_reading(running.engine)
        assert measured_processes(running) == {orphan}
    finally:
        os.kill(orphan, signal.SIGKILL)


def measured_processes(running: Running) -> set[int]:
    """The processes of all slots."""
    return {pid for slot in running.engine.slots.values() for pid in slot.tgids}


@pytest.mark.usefixtures("soon_retried")
async def test_a_change_of_targets_that_meets_a_bug_is_followed_later(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    await running.stub.Apply(state(probe(pid=process.pid)))
    met = asyncio.Event()
    running.engine.bug = KeyError("slot")
    monkeypatch.setattr(agent.log, "exception", lambda *_: met.set())
    process.kill()
    await process.wait()
    await asyncio.wait_for(met.wait(), 10)
    running.engine.bug = None
    await until(lambda: not running.engine.slots, "the slot given up")


async def test_corrupt_bytes_are_an_error_and_the_agent_lives(running: Running) -> None:
    call = running.channel.unary_unary(
        "/latencyprobe.v1.NodeAgent/Apply",
        request_serializer=lambda raw: raw,
        response_deserializer=lambda raw: raw,
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\xff\xff\xff\xff\x0f\x01garbage")
    assert refused.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    assert (await running.stub.GetNodeInfo(pb.GetNodeInfoRequest())).node_name == "blue"


async def test_without_a_client_the_lease_ends_and_everything_is_detached(
    running: Running,
) -> None:
    stream = watch(running)
    await next_report(stream)
    await running.stub.Apply(state(probe(), generation=9, lease_s=0.3))
    before = running.engine.reads
    await until(lambda: running.engine.reads > before + 5, "half a second with a listener")
    assert running.engine.slots
    stream.cancel()
    await until(lambda: not running.engine.slots, "the slots given up")
    assert running.engine.modules == frozenset()
    assert (await running.stub.Apply(state(probe(), generation=1))).generation == 1


async def test_a_slow_reader_gets_everything_and_costs_no_more_memory(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    stream = watch(running)
    await next_report(stream)
    sent = 0
    for _ in range(10):
        running.engine.measure(samples(*range(64, 264)))
        sent += 200
        await next_reading(running.engine)
    received = await gather(stream, samples(*range(sent)))
    assert received.stage("rx.total").histogram.count == sent


async def test_a_reader_that_stands_still_stops_the_sending_and_loses_nothing(
    running: Running,
) -> None:
    wide = range(64, 1 << 20, 1 << 10)
    much = total(samples(*wide, stage=stage.name) for stage in STAGES)
    await running.stub.Apply(state(*(probe(f"p{n}") for n in range(100))))
    stream = watch(running)
    await next_report(stream)
    sent, quiet, reports_before = 0, 0, 0.0
    while quiet < 5:
        running.engine.measure(much)
        sent += len(wide)
        await next_reading(running.engine)
        reports_now = running.metrics.reports._value.get()
        quiet = quiet + 1 if reports_now == reports_before else 0
        reports_before = reports_now
    received = await gather(stream, samples(*range(sent)), "p99")
    assert received.stage("rx.total").histogram.count == sent


async def test_a_report_is_within_its_size_or_of_one_probe(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_agent.serving.parts.MESSAGE_BYTES", 1000)
    await running.stub.Apply(state(*(probe(f"p{n}") for n in range(10))))
    stream = watch(running)
    await next_report(stream)
    running.engine.measure(samples(*range(64, 1 << 14, 1 << 9)))
    reported: set[str] = set()
    while len(reported) < 10:
        probes = (await next_report(stream)).probes
        reported |= {each.id for each in probes}
        assert len(probes) < 2 or sum(each.ByteSize() for each in probes) <= 1000


async def test_parts_that_were_not_sent_are_in_the_next_report_and_no_other_is(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latencyprobe_agent.serving.parts.MESSAGE_BYTES", 1000)
    desired = state(probe())
    desired.probes[0].targets.extend(pb.Target(id=f"t{n}", pid=os.getpid()) for n in range(40))
    await running.stub.Apply(desired)
    running.engine.measure(samples(*range(64, 1 << 14, 1 << 9)))
    await next_reading(running.engine)
    received: Counter[str] = Counter()

    def pump(*, most: float) -> asyncio.Task[None]:
        sent = 0

        async def send(report: pb.Report) -> None:
            nonlocal sent
            sent += 1
            if sent > most:
                raise ConnectionResetError
            for target in (target for each in report.probes for target in each.targets):
                received[target.status.id] += sum(map(_count, target.stages))

        def _count(stage: pb.StageDelta) -> int:
            return sum(stage.histogram.counts)

        return asyncio.create_task(ReportPump(running.agent, lambda: None, send).run())

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(pump(most=3), patient(10))
    assert 0 < len(received) < 41
    again = pump(most=math.inf)
    await until(lambda: len(received) == 41, "all targets")
    again.cancel()
    await asyncio.wait({again})
    assert set(received.values()) == {len(range(64, 1 << 14, 1 << 9))}


async def test_more_targets_than_slots_are_failed_with_a_message(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.agent._reconciler._slots._table = plan.SlotTable(size=2)
    probes = [probe(f"p{n}", ports=(n + 1,)) for n in range(3)]
    result = await running.stub.Apply(state(*probes))
    states = [one.targets[0].state for one in result.probes]
    attached, failed = pb.TargetStatus.ATTACHED, pb.TargetStatus.FAILED
    assert states == [attached, attached, failed]
    assert "already measures 2 targets" in result.probes[2].targets[0].message
    result = await running.stub.Apply(state(*probes[1:], generation=2))
    assert [one.targets[0].state for one in result.probes] == [attached, attached]


async def test_a_slot_is_drained_for_its_owner_before_another_target_gets_it(
    running: Running,
) -> None:
    running.agent._reconciler._slots._table = plan.SlotTable(size=1)
    await running.stub.Apply(state(probe("p", ports=(1,), interval_s=60)))
    running.engine.measure(samples(100))
    await running.stub.Apply(state(probe("q", ports=(2,)), generation=2))
    assert running.engine.assignments[-2] == {}
    stream = watch(running)
    running.engine.measure(samples(200))
    assert await gather(stream, samples(1), "q") == samples(200)


async def test_modules_are_unloaded_when_the_last_target_is_gone(running: Running) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    await running.stub.Apply(state(probe(pid=process.pid)))
    assert running.engine.modules
    process.kill()
    await process.wait()
    await until(lambda: not running.engine.modules, "the modules unloaded")
    stream = watch(running)
    async for report in reports(stream):
        if report.probes:
            status = report.probes[0].targets[0].status
            assert status.state == pb.TargetStatus.GONE
            assert "have exited" in status.message
            break


async def test_health_says_serving(running: Running) -> None:
    # The types of grpc_health know nothing of the stub's methods.
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    for service in ("", "latencyprobe.v1.NodeAgent"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_closing_ends_the_stream_and_detaches(running: Running) -> None:
    await running.stub.Apply(state(probe()))
    stream = watch(running)
    await next_report(stream)
    await running.agent.close()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in reports(stream):
            pass
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert running.engine.is_closed
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Apply(state(probe()))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_stream_is_ended_also_while_its_first_report_is_being_sent(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_report = ReportPump._report
    closing: list[asyncio.Task[None]] = []

    def close_meanwhile(*arguments: Any, **options: Any) -> pb.Report:
        closing.append(asyncio.create_task(running.agent.close()))
        return make_report(*arguments, **options)

    monkeypatch.setattr(ReportPump, "_report", close_meanwhile)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in reports(watch(running)):
            pass
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    await asyncio.gather(*closing)


async def test_the_budget_in_force_is_a_metric(running: Running) -> None:
    def limit() -> float | None:
        name = "latencyprobe_program_cpu_limit_ratio"
        return running.metrics.registry.get_sample_value(name)

    assert limit() == 0
    desired = state(probe())
    desired.probes[0].max_cpu_percent = 2
    await running.stub.Apply(desired)
    assert limit() == 0.02
    await running.stub.Apply(state(generation=2))
    assert limit() == 0


async def test_programs_over_their_budget_measure_fewer_packets(running: Running) -> None:
    desired = state(probe())
    desired.probes[0].max_cpu_percent = 1
    running.engine.cpu_percent, running.engine.figure = 3.5, 1
    await running.stub.Apply(desired)
    await until(lambda: running.engine.slice_shift == 3, "1 part of the time in 8 to be measured")
    await next_reading(running.engine)
    assert running.engine.slice_shift == 3  # the same figure counts once
    running.engine.cpu_percent = 0.2
    for figure in range(2, 2 + PATIENCE):
        assert running.engine.slice_shift == 3
        running.engine.figure = figure
        await next_reading(running.engine)
    await until(lambda: running.engine.slice_shift == 2, "1 part of the time in 4 to be measured")


@pytest.mark.parametrize("is_local", [False, True])
async def test_the_cost_of_each_hook_is_for_local_clients(running: Running, is_local: bool) -> None:
    desired = state(probe())
    desired.probes[0].node_figures = is_local
    desired.probes[0].max_cpu_percent = 1
    running.engine.hooks = (HookCost("tp_btf/tcp_probe", 5.0, 2.0, is_permanent=True),)
    running.engine.cpu_percent, running.engine.figure = 7, 1
    await running.stub.Apply(desired)
    async for report in reports(watch(running)):
        if report.overhead.measured:
            break
    assert report.overhead.cpu_percent == 7
    assert report.overhead.dispatch_ns == ASSUMED_DISPATCH_NS
    assert report.overhead.dispatch_reason
    expected = pb.HookOverhead(hook="tp_btf/tcp_probe", cpu_percent=7, permanent=True)
    assert list(report.overhead.hooks) == ([expected] if is_local else [])


async def test_modules_that_the_budget_has_no_room_for_are_reported(running: Running) -> None:
    desired = state(probe(modules=("rx", "tx", "tcp")))
    desired.probes[0].max_cpu_percent = 1
    running.engine.hooks = (HookCost("tp_btf/kfree_skb", 5.0, 2.0, is_permanent=True),)
    running.engine.cpu_percent, running.engine.figure = 7, 1
    await running.stub.Apply(desired)
    await until(lambda: running.engine.stopped == {Module.TX}, "a module stopped")
    async for report in reports(watch(running)):
        if report.overhead.stopped_modules:
            break
    assert list(report.overhead.stopped_modules) == ["tx"]


async def test_the_budget_of_one_namespace_does_not_lower_the_sampling_of_another(
    running: Running,
) -> None:
    desired = state(probe("victim"), probe("greedy"))
    for one, namespace, budget in zip(desired.probes, ("a", "b"), (1, 0.001), strict=True):
        one.namespace, one.max_cpu_percent = namespace, budget
    running.engine.cpu_percent, running.engine.figure = 0.9, 1
    await running.stub.Apply(desired)
    await next_reading(running.engine)
    assert (running.engine.sample_shift, running.engine.slice_shift) == (0, 0)


async def test_without_a_budget_every_packet_is_measured(running: Running) -> None:
    running.engine.cpu_percent, running.engine.figure = 99.0, 1
    await running.stub.Apply(state(probe()))
    await next_reading(running.engine)
    assert (running.engine.sample_shift, running.engine.slice_shift) == (0, 0)
