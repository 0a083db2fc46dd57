"""What a hostile agent writes into any text field is short and printable once it has arrived."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from latencyprobe.protocol.measurements import MAX_NAME_LENGTH
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.messages import MAX_TEXT_LENGTH
from latencyprobe_operator.api.status_fields import NodeState
from tests.unit.hostile_text import HOSTILE
from tests.unit.operator_.listening import NODE, SOUND, UID, Listening
from tests.unit.operator_.waiting import until
from tools.fakes.agent import Context, FakeAgent
from tools.fakes.samples import target_id

LARGE = HOSTILE * ((1 << 20) // len(HOSTILE.encode()))
# A line of ours has such a text, or two names, within words of its own.
LONGEST = MAX_TEXT_LENGTH + 2 * MAX_NAME_LENGTH

Path = tuple[str, ...]
Sent = TypeVar("Sent", bound=Message)


def text_fields(kind: type[Message]) -> list[Path]:
    """The paths to all text fields of a message; of a map, to its keys."""
    return list(_text_fields(kind.DESCRIPTOR))


def _text_fields(descriptor: Any) -> Iterator[Path]:
    for field in descriptor.fields:
        message = field.message_type
        if field.type == FieldDescriptor.TYPE_STRING or (
            message and message.GetOptions().map_entry
        ):
            yield (field.name,)
        elif message and message.file == descriptor.file:
            yield from ((field.name, *path) for path in _text_fields(message))


def spoiled(message: Sent, path: Path, text: str) -> Sent:
    """The message with this text in the first field of the path."""
    copy = type(message)()
    copy.CopyFrom(message)
    parent: Any = copy
    for name in path[:-1]:
        value = getattr(parent, name)
        parent = value if isinstance(value, Message) else value[0] if value else value.add()
    *_, last = path
    field = parent.DESCRIPTOR.fields_by_name[last]
    if field.type != FieldDescriptor.TYPE_STRING:
        getattr(parent, last)[text] = 1
    elif isinstance(getattr(parent, last), str):
        setattr(parent, last, text)
    else:
        getattr(parent, last).append(text)
    return copy


def texts_in(value: object) -> Iterator[str]:
    """All texts of a value, its names included."""
    if isinstance(value, str):
        yield str(value)
    elif isinstance(value, Mapping):
        yield from texts_in(tuple(value.items()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from texts_in(each)
    elif is_dataclass(value):
        yield from texts_in([getattr(value, field.name) for field in fields(value)])


class HostileAgent(FakeAgent):
    """An agent with this text in one field of its messages of one kind."""

    kind: type[Message] | None = None
    path: Path = ()

    def answer(self, message: Sent) -> Sent:
        """Put the text in, if the message is of that kind."""
        return (
            spoiled(message, self.path, LARGE) if isinstance(message, self.kind or ()) else message
        )

    async def GetNodeInfo(  # noqa: N802 - the protocol's name
        self, request: pb.GetNodeInfoRequest, context: Context
    ) -> pb.NodeInfo:
        """Describe this agent."""
        info = await super().GetNodeInfo(request, context)
        info.coverage.add(name="rx.total")
        return self.answer(info)

    async def Apply(  # noqa: N802
        self, request: pb.DesiredState, context: Context
    ) -> pb.ApplyResult:
        """Remember the state."""
        result = await super().Apply(request, context)
        result.coverage.add(name="rx.total")
        return self.answer(result)


def check_texts(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    """Check all that the operator keeps of the agent, and all that it has logged."""
    kept = list(texts_in([listening.fleet.view(NODE), listening.reports]))
    assert kept
    logged = [record.getMessage() for record in caplog.records if "latencyprobe" in record.name]
    faulty = [text for text in (*kept, *logged) if not text.isprintable() or len(text) > LONGEST]
    assert [text[:200] for text in faulty] == []


@pytest.fixture
async def hostile(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Listening]:
    """A fleet, not connected yet, and a hostile agent."""
    caplog.set_level(logging.DEBUG, "latencyprobe_operator")
    agent = HostileAgent(agent_tls)
    await agent.start()
    listening = Listening(operator_tls, agent)
    yield listening
    await listening.fleet.close()
    await agent.stop()


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in (pb.NodeInfo, pb.ApplyResult) for path in text_fields(kind)],
    ids=lambda each: ".".join(each) if isinstance(each, tuple) else each.DESCRIPTOR.name,
)
async def test_an_answers_text_is_short_and_printable(
    hostile: Listening, kind: type[Message], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(hostile.agent, HostileAgent)
    hostile.agent.kind, hostile.agent.path = kind, path
    await hostile.connect()

    check_texts(hostile, caplog)


@pytest.mark.parametrize("path", text_fields(pb.Report), ids=".".join)
async def test_a_reports_text_is_short_and_printable(
    hostile: Listening, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await hostile.connect()
    target = pb.TargetReport(
        status=pb.TargetStatus(id=target_id("a"), state=pb.TargetStatus.FAILED),
        stages=[pb.StageDelta(name="rx.total", sampling_ratio=1.0)],
    )
    node = pb.NodeContext(stages=[pb.StageDelta(name="irq.hard", sampling_ratio=1.0)])
    report = pb.Report(
        instance_id=hostile.agent.instance_id,
        generation=hostile.agent.applied[-1].generation,
        probes=[pb.ProbeReport(id=UID, targets=[target], node=node)],
        coverage=[pb.StageCoverage(name="rx.total")],
    )
    hostile.agent.send(spoiled(report, path, LARGE))
    if path == ("instance_id",):
        await until(lambda: len(hostile.agent.applied) == 2, what=lambda: hostile.fleet.view(NODE))
        await hostile.ready()
    hostile.agent.report_deltas(UID, {target_id("a"): SOUND})
    await until(
        lambda: any(
            target.measurement == SOUND for each in hostile.reports for target in each.targets
        ),
        what=lambda: hostile.fleet.view(NODE).state,
    )

    check_texts(hostile, caplog)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_an_errors_text_is_short_and_printable(
    hostile: Listening, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    await hostile.connect()
    # As much as gRPC takes of it.
    hostile.agent.refuse = (code, HOSTILE * 60)
    await hostile.agent.stop()
    await hostile.agent.start()
    await until(
        lambda: r"\x1b" in hostile.fleet.view(NODE).message,
        what=lambda: hostile.fleet.view(NODE),
    )

    check_texts(hostile, caplog)


async def test_the_version_of_an_agent_of_another_protocol_is_short_and_printable(
    hostile: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(hostile.agent, HostileAgent)
    hostile.agent.kind, hostile.agent.path = pb.NodeInfo, ("agent_version",)
    await hostile.connect()
    hostile.agent.protocol_version = 9
    await hostile.agent.stop()
    await hostile.agent.start()
    await until(
        lambda: hostile.fleet.view(NODE).state is NodeState.VERSION_SKEW,
        what=lambda: hostile.fleet.view(NODE),
    )

    check_texts(hostile, caplog)


def test_all_text_fields_are_found() -> None:
    paths = {".".join(path) for path in text_fields(pb.Report)}
    assert {"probes.node.stages.detail", "probes.targets.netns_counters", "coverage.hook"} <= paths
