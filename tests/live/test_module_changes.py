"""An agent on the running kernel with a pace for changes of modules; the test moves its clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.provision import Prepared
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import building
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject, build
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.resolver import Resolver
from tests.unit.agent.scripted import Clock, ScriptedEvidence
from tests.unit.agent.states import probe, state

NODE = NodeDescription("here", "", "", "btf", "v2", host_netns=1)
STEADY = tuple(map(str, DEFAULT_MODULES))
FLIPS = 100


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests to the compiler process, as they come."""
    seen: list[Request] = []

    async def counted(
        request: Request, cache: ObjectCache | None, prepared: Prepared | None
    ) -> LoadedObject:
        seen.append(request)
        return await build(request, cache, prepared)

    monkeypatch.setattr(building, "build", counted)
    return seen


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection of this process."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname()))
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        receiver, _ = listener.accept()
        yield sender, stack.enter_context(receiver)


@pytest.mark.own_build
async def test_flipping_modules_starts_one_compiler_and_loses_no_packet(
    start_engine: Callable[..., KernelEngine],
    requests: list[Request],
    connection: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = connection
    clock = Clock()
    agent = Agent(
        start_engine(host_netns=os.stat("/proc/self/ns/net").st_ino),
        Resolver(clock=clock),
        NODE,
        AgentMetrics(),
        ScriptedEvidence(),
        clock=clock,
        change_interval_s=60,
    )
    try:
        steady = probe("steady", ports=(sender.getsockname()[1],))
        await agent.apply(parse_desired(state(steady)))
        for generation in range(2, FLIPS + 2):
            modules = (*STEADY, "sched") if generation % 2 else ("rx",)
            flipping = probe("flipping", modules=modules)
            await agent.apply(parse_desired(state(steady, flipping, generation=generation)))
            sender.sendall(b"x")
            assert receiver.recv(1) == b"x"
        assert [set(request.modules) for request in requests] == [set(STEADY)]
        coverage = {stage.name: stage for stage in agent.coverage}
        assert coverage["sched.runqueue"].state is CoverageState.UNAVAILABLE
        assert "module sched not loaded yet" in coverage["sched.runqueue"].reason
        clock.now += 60
        await agent._attend()
        assert [len(request.modules) for request in requests] == [len(STEADY), len(STEADY) + 1]
        coverage = {stage.name: stage for stage in agent.coverage}
        assert Module.SCHED in requests[-1].modules
        assert "not loaded yet" not in coverage["sched.runqueue"].reason
        await agent.readings.until_due()
        figures = {f.probe.id: f for f in agent.readings.take_figures()}
        measured = figures["steady"].of("t").stage("rx.total")
        assert measured.histogram.count == FLIPS
        assert measured.lost == measured.unmatched == 0
        await agent.apply(parse_desired(state(generation=FLIPS + 2)))
        assert len(requests) == 2
    finally:
        await agent.close()
