"""Two operators with one agent: the real fleet of each, the real service, and TLS between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe_agent.agent import Agent, NodeDescription
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.service import Server, TcpAddress
from latencyprobe_agent.serving.tls import ServerTlsFiles
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.model import Pod, read_pod
from tests.unit.agent.scripted import ScriptedEngine, ScriptedEvidence
from tests.unit.operator_.waiting import until
from tools.fakes.samples import pod_body, probe_spec

NODE = "node-a"


@pytest.fixture
async def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def agent(engine: ScriptedEngine) -> AsyncIterator[Agent]:
    """An agent that looks after itself."""
    node = NodeDescription(NODE, "6.18.0", "x86_64", "btf", "hybrid", host_netns=1)
    agent = Agent(engine, Resolver(), node, AgentMetrics(), ScriptedEvidence())
    keeper = asyncio.create_task(agent.keep())
    yield agent
    await agent.close()
    keeper.cancel()
    await asyncio.wait({keeper})


@pytest.fixture
async def pki(tmp_path: Path) -> Path:
    """A folder with the certificates of both sides."""
    authority = Authority("test")
    (tmp_path / "ca.crt").write_bytes(authority.credential.certificate_pem)
    for name, server in (("agent", True), ("operator", False)):
        known = AGENT_NAME if server else OPERATOR_NAME
        credential = authority.issue(known, server=server, client=not server, days=1)
        (tmp_path / f"{name}.crt").write_bytes(credential.certificate_pem)
        (tmp_path / f"{name}.key").write_bytes(credential.key_pem)
    return tmp_path


@pytest.fixture
async def endpoint(agent: Agent, pki: Path) -> AsyncIterator[AgentEndpoint]:
    """Where the agent listens."""
    files = ServerTlsFiles(pki / "ca.crt", pki / "agent.crt", pki / "agent.key")
    server = Server(agent, TcpAddress("127.0.0.1:0", files, OPERATOR_NAME), AgentMetrics())
    yield AgentEndpoint(await server.start())
    await agent.close()
    await server.stop()


def _pod() -> Pod:
    """A pod with the identifiers that a real agent takes."""
    body = pod_body("a")
    body["metadata"]["uid"] = "11111111-2222-3333-4444-555555555555"
    body["status"]["containerStatuses"][0]["containerID"] = "containerd://" + "a" * 64
    return read_pod(body)


class Operator:
    """One operator's fleet, which wants the same as every other's."""

    def __init__(self, pki: Path, endpoint: AgentEndpoint, term: int) -> None:
        self.states: list[NodeState] = []
        self.reports = 0
        files = ClientTlsFiles(pki / "ca.crt", pki / "operator.crt", pki / "operator.key")
        self.fleet = Fleet(
            credentials=files.credentials,
            on_report=self._count,
            on_change=self._note,
            metrics=OperatorMetrics(),
            term=term,
        )
        wanted = DesiredStates()
        wanted.set_probe(probe_spec(interval="1s"), [_pod()])
        self.fleet.open()
        self.fleet.want(NODE, wanted.of_node(NODE))
        self.fleet.set_agent(NODE, endpoint)

    @property
    def state(self) -> NodeState:
        """The state of the agent in this operator's eyes."""
        return self.fleet.view(NODE).state

    @property
    def times_ready(self) -> int:
        """How often the agent has become ready."""
        pairs = zip([NodeState.CONNECTING, *self.states], self.states, strict=False)
        return sum(now is NodeState.READY is not before for before, now in pairs)

    def _count(self, *_: object) -> None:
        self.reports += 1

    def _note(self, _: str) -> None:
        self.states.append(self.state)

    async def ready(self) -> None:
        """Wait until the agent has this operator's state."""
        await until(lambda: self.state is NodeState.READY, what=lambda: self.fleet.view(NODE))

    async def reported(self, count: int) -> None:
        """Wait for so many more reports."""
        before = self.reports
        await until(lambda: self.reports >= before + count, what=lambda: self.fleet.view(NODE))


async def test_the_new_leader_has_the_agent_and_the_old_one_does_not_get_it_back(
    agent: Agent, pki: Path, endpoint: AgentEndpoint
) -> None:
    old = Operator(pki, endpoint, term=7)
    await old.ready()
    new = Operator(pki, endpoint, term=8)
    try:
        await new.ready()
        await until(lambda: old.state is NodeState.REJECTED, what=lambda: old.fleet.view(NODE))

        await new.reported(3)

        assert "term 7 is older than 8" in old.fleet.view(NODE).message
        assert (new.state, new.times_ready) == (NodeState.READY, 1)
        assert (agent.term, old.times_ready) == (8, 1)
    finally:
        await old.fleet.close()
        await new.fleet.close()


async def test_the_agent_detaches_nothing_between_two_leaders(
    agent: Agent, pki: Path, endpoint: AgentEndpoint
) -> None:
    old = Operator(pki, endpoint, term=7)
    await old.ready()
    generation = agent.generation
    await old.fleet.close()
    assert agent.generation == generation, "closing tells the agent nothing"
    new = Operator(pki, endpoint, term=8)
    try:
        await new.ready()
        assert agent.term == 8
        assert [p.id for p in agent._reconciler.desired.probes] == ["uid-checkout"]
    finally:
        await new.fleet.close()
