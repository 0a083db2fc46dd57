"""An agent that serves over real gRPC, with a scripted engine below it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent, NodeFacts
from latencyprobe_agent.serving.metrics import Metrics
from latencyprobe_agent.serving.service import Server, SocketAddress
from latencyprobe_agent.targets.resolver import Resolver
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentAsyncStub

NODE = NodeFacts("blue", "6.18.0", "x86_64", "btf", "hybrid")


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
    metrics: Metrics
    channel: grpc.aio.Channel

    @property
    def stub(self) -> NodeAgentAsyncStub:
        return NodeAgentStub(self.channel)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def evidence() -> ScriptedEvidence:
    return ScriptedEvidence()


@pytest.fixture
async def agent(engine: ScriptedEngine, evidence: ScriptedEvidence) -> AsyncIterator[Agent]:
    """An agent that looks after itself."""
    running = Agent(engine, Resolver(), NODE, Metrics(), evidence)
    keeper = asyncio.create_task(running.keep())
    yield running
    await running.close()
    keeper.cancel()
    await asyncio.wait({keeper})


@pytest.fixture
async def running(
    agent: Agent, engine: ScriptedEngine, evidence: ScriptedEvidence, tmp_path: Path
) -> AsyncIterator[Running]:
    """The agent on a Unix socket, and a channel to it."""
    path = tmp_path / "private" / "agent.sock"
    server = Server(agent, SocketAddress(path))
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield Running(agent, engine, evidence, agent._metrics, channel)
    await agent.close()
    await server.stop()
