"""Few agents at the same time: so TLS handshakes end within their limit, and the loop has turns."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from grpc import aio

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents import session
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.sent_states import SentStates
from latencyprobe_operator.agents.session import AgentSession
from latencyprobe_operator.agents.state_sync import StateSync
from latencyprobe_operator.agents.turns import Turns
from latencyprobe_operator.desired_state import NO_STATE
from latencyprobe_operator.metrics import OperatorMetrics

AT_ONCE = 2
AGENTS = 5
NO_PROBES = pb.Report()


class SlowAgents:
    """The stub of agents that answer their greeting when a test lets one do so."""

    def __init__(self) -> None:
        self.greeted = 0
        self.answers = asyncio.Semaphore(0)

    async def GetNodeInfo(  # noqa: N802 - the protocol's name
        self, request: pb.GetNodeInfoRequest, **options: Any
    ) -> pb.NodeInfo:
        """Answer, with a version that ends the session."""
        self.greeted += 1
        await self.answers.acquire()
        return pb.NodeInfo(protocol_version=99)


def session_of(
    node: str,
    greetings: asyncio.Semaphore,
    *,
    turns: Turns | None = None,
    metrics: OperatorMetrics | None = None,
) -> AgentSession:
    """A session of this node."""
    metrics = metrics or OperatorMetrics()
    misreports = Misreports(node, metrics)
    return AgentSession(
        node,
        sync=StateSync(NO_STATE),
        facts=AgentFacts(misreports),
        misreports=misreports,
        greetings=greetings,
        turns=turns,
        clock_ns=time.time_ns,
        term=0,
        metrics=metrics,
        on_state=lambda state, message: None,
        on_news=lambda: None,
        on_report=lambda node, report: None,
    )


async def never() -> None:
    """End no session."""
    await asyncio.Event().wait()


async def everyone_has_had_a_turn() -> None:
    for _ in range(10 * AGENTS):
        await asyncio.sleep(0)


async def test_agents_are_greeted_a_few_at_a_time_and_all_in_the_end() -> None:
    agents, greetings = SlowAgents(), asyncio.Semaphore(AT_ONCE)
    stub = cast(Any, agents)
    running = [
        asyncio.create_task(session_of(f"node-{n}", greetings).run(stub, never))
        for n in range(AGENTS)
    ]

    await everyone_has_had_a_turn()
    assert agents.greeted == AT_ONCE

    for answered in range(1, AGENTS + 1):
        agents.answers.release()
        await everyone_has_had_a_turn()
        assert agents.greeted == min(AT_ONCE + answered, AGENTS)
    await asyncio.gather(*running, return_exceptions=True)


class Backlog:
    """A stream whose reports have all arrived."""

    def __init__(self, reports: int, report: pb.Report = NO_PROBES) -> None:
        self.reports = reports
        self.report = report

    async def read(self) -> object:
        """Return the next report at once."""
        self.reports -= 1
        return self.report.SerializeToString() if self.reports >= 0 else aio.EOF


async def test_a_backlog_of_many_agents_is_taken_in_over_many_turns() -> None:
    metrics, a_few, seen = OperatorMetrics(), Turns(AT_ONCE), [0.0]
    streams = [Backlog(3) for _ in range(20 * AGENTS)]
    sessions = [
        session_of(f"node-{n}", asyncio.Semaphore(), turns=a_few, metrics=metrics)
        for n in range(len(streams))
    ]
    listening = [
        asyncio.create_task(each._listen(cast(Any, stream)))
        for each, stream in zip(sessions, streams, strict=True)
    ]

    while not all(task.done() for task in listening):
        await asyncio.sleep(0)
        taken = metrics.registry.get_sample_value("latencyprobe_operator_reports_total")
        seen.append(taken or 0)

    assert seen[-1] == 3 * len(streams)
    assert max(later - earlier for earlier, later in pairwise(seen)) <= AT_ONCE
    assert {str(task.exception()) for task in listening} == {
        "the agent ended the stream of reports"
    }


class DecodedReports:
    """The number of reports that are decoded, and not taken in yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = self.most = 0
        monkeypatch.setattr(session, "check_size", self._note)

    def _note(self, _: pb.Report) -> None:
        self.number += 1
        self.most = max(self.most, self.number)


class OneReport(Backlog):
    """A stream of one report."""

    def __init__(self, report: pb.Report, decoded: DecodedReports) -> None:
        super().__init__(1, report)
        self._decoded = decoded

    async def read(self) -> object:
        """Return the report; the next call shows that it was taken in."""
        self._decoded.number -= not self.reports
        return await super().read()


@pytest.mark.parametrize(("padding_bytes", "is_encoded"), [(0, True), (64 << 10, False)])
async def test_a_backlog_waits_encoded_and_large_reports_are_interleaved(
    padding_bytes: int, is_encoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, a_few = DecodedReports(monkeypatch), Turns(AT_ONCE)
    monkeypatch.setattr(SentStates, "covers", lambda *_: False)
    report = pb.Report(probes=[pb.ProbeReport(id="probe")] * 3)
    report.coverage.add(name="unknown", reason="x" * padding_bytes)
    listening = [
        session_of(f"node-{n}", asyncio.Semaphore(), turns=a_few)._listen(
            cast(Any, OneReport(report, decoded))
        )
        for n in range(20 * AGENTS)
    ]

    await asyncio.gather(*listening, return_exceptions=True)

    assert (decoded.most <= AT_ONCE) is is_encoded
    assert decoded.number == 0


async def test_a_message_that_is_no_report_ends_the_stream_and_is_counted() -> None:
    metrics = OperatorMetrics()
    listening = session_of("node-a", asyncio.Semaphore(), metrics=metrics)
    stream = Backlog(1)
    stream.read = AsyncMock(return_value=b"\xff")  # type: ignore[method-assign]

    with pytest.raises(session.LinkBrokenError, match="no report"):
        await listening._listen(cast(Any, stream))

    name = "latencyprobe_operator_corrupt_reports_total"
    assert metrics.registry.get_sample_value(name, {"agent_node": "node-a"}) == 1
