"""A node without a target has nothing of ours attached."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.resolver import Resolver
from tests.live.loaded_programs import links_of
from tests.live.measuring import CLIENT, SERVER, both, count, lasting_coverage, measure
from tests.live.pods import Pod
from tests.live.sockets import sent_again
from tests.live.targets import made_cgroup, sleeper, until
from tests.unit.agent.scripted import Clock, ScriptedEvidence
from tests.unit.agent.states import probe, state

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
POD_UID = "0f8e6a52-6a0c-4f0b-8d8e-1c7b9f3a2d41"
NODE = NodeDescription("here", "", "", "btf", "v2", host_netns=1)


def links() -> set[int]:
    return links_of(os.getpid())


@pytest.mark.every_kernel
@pytest.mark.own_build
async def test_nothing_is_attached_before_the_first_slot_and_after_the_last(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    others = links()
    engine = await both(start_engine, client, server)
    assert links() - others
    coverage = lasting_coverage(engine)
    for _ in range(2):
        before = sent_again(client.namespace)
        measured, _ = await measure(engine, client, server, 20)
        assert count(measured[SERVER], "rx.total") == 20
        again = sent_again(client.namespace) - before
        assert 20 <= count(measured[CLIENT], "tx.total") <= 20 + again
        engine.assign({})
        assert links() <= others
        assert lasting_coverage(engine) == coverage
        unmeasured, _ = await measure(engine, client, server, 20)
        assert unmeasured == {}
        engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
        assert links() - others


async def test_measurements_until_the_last_slot_left_are_read_later(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    serving = server.start("server", server.address, "7000", "20")
    asking = client.start("client", server.address, "7000", "20")
    asking.go()
    serving.result()
    asking.result()
    engine.assign({})
    assert count(engine.read()[SERVER], "rx.total") == 20
    assert engine.read() == {}


async def test_modules_may_change_while_nothing_is_attached(
    start_engine: Start, pair: Pair
) -> None:
    client, server = pair
    engine = await both(start_engine, client, server)
    engine.assign({})
    await engine.use(frozenset({Module.TCP}))
    engine.assign({})
    assert not links()
    engine.assign({SERVER: server.spec()})
    measured, _ = await measure(engine, client, server, 20)
    assert not any(name.startswith("rx.") for name in measured[SERVER].stages)
    assert count(measured[SERVER], "tcp.rtt")
    engine.assign({})
    await engine.use(frozenset())
    engine.assign({SERVER: server.spec()})
    assert not links()


@pytest.fixture
async def agent(start_engine: Start) -> AsyncIterator[Agent]:
    """An agent whose programs linger for a minute of the test's clock."""
    clock = Clock()
    made = Agent(
        start_engine(host_netns=os.stat("/proc/self/ns/net").st_ino),
        Resolver(clock=clock),
        NODE,
        AgentMetrics(),
        ScriptedEvidence(),
        clock=clock,
        change_interval_s=60,
    )
    yield made
    await made.close()


def state_of(agent: Agent) -> TargetState:
    (desired,) = agent._reconciler.desired.probes
    return agent.standings(desired)["t"].state


async def look(agent: Agent, wanted: TargetState) -> None:
    """Have the agent look at its targets, at its own pace, until the target is in this state."""
    clock = agent._clock
    assert isinstance(clock, Clock)
    for _ in range(50):
        if state_of(agent) is wanted:
            return
        clock.now += 0.2
        await agent._attend()
    pytest.fail(f"it is {state_of(agent)}")


async def test_an_agent_attaches_with_its_first_target_and_detaches_with_the_last(
    agent: Agent,
) -> None:
    for generation, container_id in enumerate(("ab" * 32, "cd" * 32), 1):
        desired = state(probe(), generation=generation)
        container = pb.Container(pod_uid=POD_UID, container_id=f"containerd://{container_id}")
        desired.probes[0].targets[0].container.CopyFrom(container)
        await agent.apply(parse_desired(desired))
        assert state_of(agent) is TargetState.PENDING
        assert not links()
        with made_cgroup(f"kubepods/pod{POD_UID}/{container_id}") as group, sleeper(cgroup=group):
            until((group / "cgroup.procs").read_text, "its start")
            await look(agent, TargetState.ATTACHED)
            assert links()
        await look(agent, TargetState.GONE)
        assert not links()
