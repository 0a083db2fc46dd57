"""The status of any report that is accepted fits the CRD, so that the API server takes it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import example, given
from hypothesis import strategies as st

from latencyprobe.domain.stages import BY_NAME, COUNTERS
from latencyprobe.protocol.measurements import MAX_OPEN_COUNTERS
from latencyprobe.protocol.summaries import MAX_CONTAINERS
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.messages import coverage_of, reported_probe
from latencyprobe_operator.agents.reported_summaries import is_summary, reported_summary
from latencyprobe_operator.observed_state import AgentView, ReportedProbe
from latencyprobe_operator.probes.document import size_bytes
from tests.unit.hostile_text import HOSTILE
from tests.unit.operator_.crd_schema import misfits, read_schema
from tests.unit.operator_.probe_world import World, running
from tests.unit.operator_.virtual_time import VirtualTimeLoop
from tools.fakes.samples import pod, probe_body, target_id

SCHEMA = read_schema()["properties"]["status"]
UID = "uid-checkout"
# As docs/api.md promises.
LARGEST_STATUS_BYTES = 240 << 10
NUMBERS = (0, 1, 101, 2**31, 2**32 - 1, 2**53 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -(2**63))
FLOATS = (0.0, 5e-324, 2.0**-16, 1.0, 100.0, 100.4, 100.6, 1e15, 2.0**53 - 1, math.inf, math.nan)
TEXTS = ("", "drops.X", HOSTILE, HOSTILE * 30, "\N{COLLISION SYMBOL}" * 400, '"' * 64, "\0" * 64)
EXTREMES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_UINT32: NUMBERS,
    FieldDescriptor.CPPTYPE_UINT64: NUMBERS,
    FieldDescriptor.CPPTYPE_INT32: NUMBERS,
    FieldDescriptor.CPPTYPE_INT64: NUMBERS,
    FieldDescriptor.CPPTYPE_DOUBLE: FLOATS,
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 4, 99),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
}

Path = tuple[str, ...]
Spoil = tuple[Path, Any]


def histogram() -> pb.Histogram:
    """A histogram with samples at both ends."""
    return pb.Histogram(
        sum_ns=400_000, min_ns=1, max_ns=2000, positions=[0, 40, 241], counts=[100, 200, 1]
    )


def stage(name: str, detail: str = "") -> pb.StageDelta:
    """A stage with samples."""
    return pb.StageDelta(name=name, histogram=histogram(), sampling_ratio=1.0, detail=detail)


def node() -> pb.NodeContext:
    """The figures of a node."""
    return pb.NodeContext(stages=[stage("irq.hard", "eth0")], counters={"eth0:rx_dropped": 1})


def summary() -> pb.ProbeReport:
    """A sound report of a summary."""
    message = pb.ProbeReport(id=UID, node=node())
    message.begin.seconds, message.end.seconds = 1_700_000_000, 1_700_000_010
    message.summary.score_version = 1
    message.summary.stages.extend(map(stage, ("rx.total", "rx.socket", "tx.total")))
    message.summary.counters["retransmits"] = 1
    message.summary.verdicts["SlowReader"] = 1
    message.summary.waiting_ns["SlowReader"] = 1
    message.summary.scores.add(pod_uid="uid-a", score=7)
    message.summary.statuses.add(id=target_id("a"), state=pb.TargetStatus.ATTACHED)
    row = message.pods.add(pod_uid="uid-a", name="a", score=7, containers=["server"])
    row.verdict.MergeFrom(
        pb.Verdict(bottleneck="SlowReader", share_percent=90, stage="rx.socket", culprit="cgroup 7")
    )
    row.verdict.evidence.add(kind="share", text="rx.socket: 9 ms on average")
    row.counters["retransmits"] = row.netns_counters["TcpExtListenDrops"] = 1
    row.stages.add(name="rx.total", count=300, p99_ns=1000, sampling_ratio=1.0)
    row.stages.add(name="rx.socket", count=300, share_percent=90, sampling_ratio=1.0)
    return message


def deltas() -> pb.ProbeReport:
    """A sound report of an older agent, which keeps no windows."""
    message = pb.ProbeReport(id=UID, node=node())
    target = message.targets.add(counters={"retransmits": 1}, netns_counters={"TcpExtX": 1})
    target.status.id, target.status.state = target_id("a"), pb.TargetStatus.ATTACHED
    target.stages.extend(map(stage, ("rx.total", "rx.socket", "tx.total")))
    return message


SOUND = {"summary": summary, "deltas": deltas}


def paths(message: Message) -> Iterator[tuple[Path, Any]]:
    """Yield the paths to all fields of a message and of those in it that hold plain values."""
    for field in message.DESCRIPTOR.fields:
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            yield (field.name,), field
            continue
        value = getattr(message, field.name)
        part = value if isinstance(value, Message) else value[0] if value else value.add()
        for path, found in paths(part):
            yield (field.name, *path), found


def spoils(message: Message) -> list[Spoil]:
    """Return an extreme value for each field, of a map for its keys and for its values."""
    found: list[Spoil] = []
    for path, field in paths(message):
        entry = field.message_type
        if entry is None:
            found += [(path, value) for value in EXTREMES[field.cpp_type]]
        else:
            kind = entry.fields_by_name["value"].cpp_type
            found += [(path, {"": 0, key: 1}) for key in TEXTS]
            found += [(path, {"retransmits": 1, "X": value}) for value in EXTREMES[kind]]
            found += [(path, {"retransmits": value}) for value in EXTREMES[kind]]
    return found


def spoil(message: Message, path: Path, value: Any) -> bool:
    """Put the value into the first field of the path; return False if the field cannot hold it."""
    parent: Any = message
    for name in path[:-1]:
        inner = getattr(parent, name)
        parent = inner if isinstance(inner, Message) else inner[0] if inner else inner.add()
    try:
        if isinstance(value, dict):
            getattr(parent, path[-1]).update(value)
        elif parent.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
            del getattr(parent, path[-1])[:1]
            getattr(parent, path[-1]).append(value)
        else:
            setattr(parent, path[-1], value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


SPOILS = {name: spoils(sound()) for name, sound in SOUND.items()}


def accepted(message: pb.ProbeReport, world: World) -> ReportedProbe | None:
    """Decode a report as a session does; None if it is corrupt, or on another probe."""
    if message.id != UID:
        return None
    state = world.desired.of_node("node-a")
    names = {(UID, target.id) for probe in state for target in probe.targets}
    if not is_summary(message):
        return reported_probe(message, names)
    asked = AskedPods()
    asked.ask(state)
    report = reported_summary(message, names, asked)
    return None if report.corruption else report


class HostileNode(World):
    """A world whose agent has reported this coverage, and this CPU time."""

    coverage: tuple[pb.StageCoverage, ...] = ()
    cpu_percent = 0.1

    def agent(self, node: str) -> AgentView:
        view = super().agent(node)
        return AgentView(
            view.state,
            view.message,
            coverage_of(self.coverage),
            view.applied,
            view.others,
            self.cpu_percent,
        )


async def status_after(
    world: World, *messages: pb.ProbeReport, sound: pb.ProbeReport, max_pods: int = 20
) -> dict[str, Any]:
    """Return the status that is written after these reports and a sound one."""
    body = probe_body(
        interval="1s", modules=["rx", "tx", "tcp", "irq"], report={"maxPods": max_pods}
    )
    async with running(world, body, node_figures=True) as probe:
        world.show(*(pod(name) for name in ("a", *(f"b{n}" for n in range(1, max_pods)))))
        for message in (sound, *messages):
            if report := accepted(message, world):
                probe.take_report("node-a", report)
        await asyncio.sleep(5)
    return world.status


def check(kind: str, changes: list[Spoil]) -> bool:
    """Check the status after a report with these changes; return False if it was refused."""
    message = SOUND[kind]()
    if not all(spoil(message, path, value) for path, value in changes):
        return False
    world = World()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        status = runner.run(status_after(world, message, sound=SOUND[kind]()))
    assert status["lastReportTime"]
    assert list(misfits(status, SCHEMA)) == [], changes
    assert size_bytes(status) <= LARGEST_STATUS_BYTES
    return accepted(message, world) is not None


@pytest.mark.parametrize("kind", SOUND)
def test_an_extreme_value_of_any_field_leaves_a_status_that_fits_the_crd(kind: str) -> None:
    taken = [check(kind, [change]) for change in SPOILS[kind]]

    assert sum(taken) > len(taken) / 4, "most reports must reach the status"


@pytest.mark.parametrize("kind", SOUND)
def test_extreme_values_together_leave_a_status_that_fits_the_crd(kind: str) -> None:
    @given(st.lists(st.sampled_from(SPOILS[kind]), max_size=8))
    @example([])
    def hold(changes: list[Spoil]) -> None:
        check(kind, changes)

    hold()


WIDE = "\N{COLLISION SYMBOL}"
# In UTF-8 or in JSON each takes more bytes than a letter.
TEXTS_THAT_GROW = (WIDE, '"', "\\", "\0", "\U000e0001")
# The rows that are written by default, with each text; other numbers of rows, with two of them.
LARGEST = [
    *((20, text) for text in TEXTS_THAT_GROW),
    (1, WIDE),
    (100, "\0"),
    *(
        pytest.param(pods, text, marks=pytest.mark.thorough)
        for pods in (1, 100)
        for text in TEXTS_THAT_GROW
        if (pods, text) not in {(1, WIDE), (100, "\0")}
    ),
]


def largest(pods: int, text: str) -> pb.ProbeReport:
    """The largest summary that is accepted: each list and each text is as long as it may be."""
    message = summary()
    del message.pods[:]
    for number in range(pods):
        name = f"b{number}" if number else "a"
        message.summary.scores.add(pod_uid=f"uid-{name}", score=7) if number else None
        row = message.pods.add(pod_uid=f"uid-{name}", name=name, score=7)
        row.containers.extend([text * 253] * MAX_CONTAINERS)
        row.verdict.MergeFrom(pb.Verdict(bottleneck=text * 64, next_step=text * 400))
        row.verdict.evidence.extend([pb.Evidence(text=text * 400)] * 32)
        for index in range(MAX_OPEN_COUNTERS):
            unique = f"{index:03}".translate({ord("0") + n: 0x1F300 + n for n in range(10)})
            row.counters[f"drops.{text * 55}{unique}"] = 2**53 - 1
            row.netns_counters[f"{text * 61}{unique}"] = 2**53 - 1
            message.node.counters[f"{text * 61}{unique}"] = 2**53 - 1
        for each in BY_NAME:
            row.stages.add(name=each, count=2**53 - 1, share_percent=1e15, sampling_ratio=2**-16)
    for index in range(40):
        message.node.stages.append(stage("irq.hard", f"{text * 62}{index}"))
    return message


@pytest.mark.parametrize(("pods", "text"), LARGEST, ids=ascii)
def test_the_largest_reports_leave_a_status_of_the_size_that_is_promised(
    pods: int, text: str
) -> None:
    world = HostileNode()
    world.coverage = tuple(
        pb.StageCoverage(
            name=each,
            state=pb.StageCoverage.UNAVAILABLE,
            hook=text * 400,
            reason=text * 400,
        )
        for each in (*BY_NAME, *(counter.name for counter in COUNTERS))
    )
    world.cpu_percent = 2.0**53 - 1
    message = largest(pods, text)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        status = runner.run(status_after(world, message, sound=summary(), max_pods=pods))
    assert accepted(message, world)
    assert status["pods"]
    assert list(misfits(status, SCHEMA)) == []
    assert size_bytes(status) <= LARGEST_STATUS_BYTES
