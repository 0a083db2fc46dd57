"""Terms on the operator's side: states and streams carry them, reports are judged by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.agents.generations import NewerTermError
from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.agents.sent_states import SentStates
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredNodeState, DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent
from tools.fakes.samples import pod, probe_spec

NODE, UID = "node-a", "uid-checkout"
TERM = 8
NOW = 10**18


def state() -> DesiredNodeState:
    """The desired state of a node with one pod."""
    states = DesiredStates()
    states.set_probe(probe_spec(), [pod("a")])
    return states.of_node(NODE)


@pytest.fixture
def sent() -> SentStates:
    """The states of a leader that has sent one, of generation NOW."""
    sent = SentStates(lambda: NOW, TERM)
    sent.encode(state())
    sent.mark_applied()
    return sent


@pytest.mark.parametrize(
    ("term", "generation", "counts"),
    [
        (TERM, NOW, True),
        (TERM, NOW - 1, False),
        (TERM - 1, NOW + 1, False),  # the clock of the leader before was ahead
        (0, NOW, True),  # an agent without terms
        (0, NOW - 1, False),
    ],
)
def test_a_report_counts_by_term_and_generation(
    sent: SentStates, term: int, generation: int, *, counts: bool
) -> None:
    sent.observe(term, generation)
    assert sent.covers(UID, term, generation) is counts


@pytest.mark.parametrize(("term", "next_one"), [(TERM, NOW + 8), (0, NOW + 8), (7, NOW + 1)])
def test_only_generations_of_its_own_term_are_overtaken(
    sent: SentStates, term: int, next_one: int
) -> None:
    sent.observe(term, NOW + 7)
    assert sent.encode(state()).message.generation == next_one


@pytest.mark.parametrize("term", [TERM + 1, 2**31, 2**64 - 1])
def test_a_newer_term_is_an_error_of_that_agents_link(sent: SentStates, term: int) -> None:
    with pytest.raises(NewerTermError, match=f"follows an operator of term {term}"):
        sent.observe(term, 1)
    assert sent.encode(state()).message.term == TERM


@pytest.fixture
async def agents(agent_tls: ClientTlsFiles) -> AsyncIterator[list[FakeAgent]]:
    """Two running agents."""
    agents = [FakeAgent(agent_tls), FakeAgent(agent_tls)]
    for agent in agents:
        await agent.start()
    yield agents
    for agent in agents:
        await agent.stop()


async def test_an_agent_that_names_a_newer_term_loses_its_own_link_alone(
    agents: list[FakeAgent], operator_tls: ClientTlsFiles
) -> None:
    liar, honest = agents
    fleet = Fleet(
        credentials=operator_tls.credentials,
        on_report=lambda *_: None,
        on_change=lambda _: None,
        metrics=OperatorMetrics(),
        term=TERM,
    )
    fleet.open()
    for node, agent in (("liar", liar), ("honest", honest)):
        fleet.want(node, state())
        fleet.set_agent(node, AgentEndpoint(agent.address))
    for node, agent in (("liar", liar), ("honest", honest)):
        await until(
            lambda: fleet.view(node).state is NodeState.READY and agent.listeners,  # noqa: B023
            what=lambda: fleet.view(node),  # noqa: B023
        )
    assert honest.applied[-1].term == TERM

    liar.send(pb.Report(instance_id=liar.instance_id, term=2**63, generation=1))

    await until(lambda: liar.listeners == 0, what=lambda: fleet.view("liar"))
    assert fleet.view("honest").state is NodeState.READY
    assert honest.listeners == 1
    await asyncio.gather(fleet.close())
