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
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentAsyncStub


async def until(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    """Wait for a condition, with a deadline."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition(), f"not within {seconds} s: {what}"


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
