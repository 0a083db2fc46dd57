"""A running agent with a client, and waiting for what it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.serving.metrics import AgentMetrics
from tests.patience import patient
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentAsyncStub


# Ten times what such a wait takes on a busy machine.
_DEADLINE_S = 30.0


async def until(
    condition: Callable[[], object], what: str, *, seconds: float | None = None
) -> None:
    """Wait for a condition, with a deadline; None: that of most."""
    deadline_s = patient(_DEADLINE_S) if seconds is None else seconds
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition(), f"not within {deadline_s:g} s: {what}"


async def next_reading(engine: ScriptedEngine) -> None:
    """Wait until the agent has read the engine once more."""
    before = engine.reads
    await until(lambda: engine.reads > before, "a reading")


@dataclass
class Running:
    """An agent, what is below it, and a client of it."""

    agent: Agent
    engine: ScriptedEngine
    evidence: ScriptedEvidence
    metrics: AgentMetrics
    channel: grpc.aio.Channel

    @property
    def stub(self) -> NodeAgentAsyncStub:
        return NodeAgentStub(self.channel)
