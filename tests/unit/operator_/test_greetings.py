"""Greetings: few agents at the same time, so that each TLS handshake ends within its limit."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.session import AgentSession
from latencyprobe_operator.agents.state_sync import StateSync
from latencyprobe_operator.desired_state import NO_STATE
from latencyprobe_operator.metrics import OperatorMetrics

AT_ONCE = 2
AGENTS = 5


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


def session_of(node: str, greetings: asyncio.Semaphore) -> AgentSession:
    """A session of this node."""
    metrics = OperatorMetrics()
    misreports = Misreports(node, metrics)
    return AgentSession(
        node,
        sync=StateSync(NO_STATE),
        facts=AgentFacts(misreports),
        misreports=misreports,
        greetings=greetings,
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
