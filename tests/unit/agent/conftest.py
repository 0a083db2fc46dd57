"""An agent that serves over real gRPC, with a scripted engine below it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.load import perf
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.service import Server, SocketAddress
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.totals import Totals
from tests.unit.agent.fake_kernel import Kernel
from tests.unit.agent.running import Running
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence

# Processes of the tests are in the node's own network namespace.
NODE = NodeDescription(
    "blue", "6.18.0", "x86_64", "btf", "hybrid", os.stat("/proc/self/ns/net").st_ino
)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def evidence() -> ScriptedEvidence:
    return ScriptedEvidence()


@pytest.fixture
def metrics() -> AgentMetrics:
    return AgentMetrics()


@pytest.fixture
def totals() -> Totals:
    return Totals()


@pytest.fixture
async def agent(
    engine: ScriptedEngine, evidence: ScriptedEvidence, metrics: AgentMetrics, totals: Totals
) -> AsyncIterator[Agent]:
    """An agent that looks after itself."""
    running = Agent(engine, Resolver(), NODE, metrics, evidence, totals=totals)
    keeper = asyncio.create_task(running.keep())
    yield running
    await running.close()
    keeper.cancel()
    await asyncio.wait({keeper})


@pytest.fixture
async def running(
    agent: Agent,
    engine: ScriptedEngine,
    evidence: ScriptedEvidence,
    metrics: AgentMetrics,
    tmp_path: Path,
) -> AsyncIterator[Running]:
    """The agent on a Unix socket, and a channel to it."""
    path = tmp_path / "private" / "agent.sock"
    server = Server(agent, SocketAddress(path), metrics)
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield Running(agent, engine, evidence, metrics, channel)
    await agent.close()
    await server.stop()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel that takes everything unless it is told to refuse."""
    kernel = Kernel()
    monkeypatch.setattr(libbpf, "create_map", kernel.create_map)
    monkeypatch.setattr(libbpf, "load_program", kernel.load_program)
    monkeypatch.setattr(libbpf, "attach_raw_tracepoint", kernel.attach_raw_tracepoint)
    monkeypatch.setattr(libbpf, "attach_iterator", kernel.attach_iterator)
    monkeypatch.setattr(perf, "attach_kprobe", kernel.attach_kprobe)
    monkeypatch.setattr("platform.release", lambda: "6.1.0-13-amd64")
    return kernel
