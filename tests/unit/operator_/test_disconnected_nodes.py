"""Nodes are disconnected once their agents have had no lasting connection for minutes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latencyprobe_operator.agents.disconnected_nodes import (
    DISCONNECTED_S,
    LASTING_S,
    AgentConnection,
    DisconnectedNodes,
)
from latencyprobe_operator.api.status_fields import NodeState as State

STEP_S = 5.0
HOUR_S = 3600.0

Link = Callable[[float], State | AgentConnection | None]
"""A node's link at a time; None: the operator knows no such node."""


def as_connection(link: State | AgentConnection) -> AgentConnection:
    return link if isinstance(link, AgentConnection) else AgentConnection(link)


def most_disconnected(*links: Link, seconds: float = HOUR_S) -> int:
    """The largest number of disconnected nodes, seen as often as the operator does."""
    nodes = DisconnectedNodes()
    most = 0
    for step in range(int(seconds / STEP_S)):
        at = step * STEP_S
        seen = {str(number): link(at) for number, link in enumerate(links)}
        known = {node: as_connection(link) for node, link in seen.items() if link is not None}
        most = max(most, nodes.count(known, at=1e6 + at))
    return most


def ready(_: float) -> State:
    return State.READY


def flapping(state: State, up_s: float) -> Link:
    """A link that is ready for this time, again and again, and in this state for 15 s between."""
    return lambda at: State.READY if at % (up_s + 15) < up_s else state


def failing(every_s: float) -> Link:
    """A link that fails as often, and is ready again before it is seen."""
    return lambda at: AgentConnection(State.READY, int(at / every_s))


def upgraded(number: int) -> Link:
    """The agent of one node among many that are upgraded in turn: each is away for a minute."""

    def link(at: float) -> State | None:
        away_s = at - 60 * number
        if not 0 <= away_s < 60:
            return State.READY
        return (State.UNREACHABLE, None, State.NO_AGENT, State.CONNECTING)[int(away_s // 15)]

    return link


@pytest.mark.parametrize("state", [State.CONNECTING, State.UNREACHABLE, State.REJECTED])
def test_an_agent_that_fails_again_and_again_is_disconnected(state: State) -> None:
    assert most_disconnected(ready, flapping(state, 30), flapping(state, 5), ready) == 2


def test_an_agent_whose_breaks_are_never_seen_is_disconnected() -> None:
    assert most_disconnected(failing(40)) == 1
    assert most_disconnected(failing(300)) == 0


@pytest.mark.parametrize("state", [each for each in State if each is not State.READY])
def test_an_agent_that_stays_without_a_connection_is_disconnected(state: State) -> None:
    assert most_disconnected(ready, lambda _: state) == 1


def test_connections_that_last_are_not_disconnected_for_their_breaks() -> None:
    assert most_disconnected(flapping(State.UNREACHABLE, LASTING_S + STEP_S)) == 0


def test_no_node_is_disconnected_during_an_upgrade_of_all_agents() -> None:
    links = [upgraded(number) for number in range(50)]

    assert most_disconnected(*links) == 0


def test_a_node_that_joins_is_not_disconnected_while_it_starts() -> None:
    def joining(at: float) -> State | None:
        return None if at < 600 else State.NO_AGENT if at < 700 else State.READY

    assert most_disconnected(joining) == 0


def test_a_disconnected_node_heals_by_a_connection_that_lasts() -> None:
    nodes = DisconnectedNodes()
    ready, unreachable = AgentConnection(State.READY), AgentConnection(State.UNREACHABLE, 1)
    nodes.count({"a": ready}, at=0)
    assert nodes.count({"a": unreachable}, at=DISCONNECTED_S) == 1

    healed = AgentConnection(State.READY, 1)
    assert nodes.count({"a": healed}, at=DISCONNECTED_S + 1) == 1
    assert nodes.count({"a": healed}, at=DISCONNECTED_S + 1 + LASTING_S) == 0


def test_a_node_that_is_gone_is_forgotten() -> None:
    nodes = DisconnectedNodes()
    connecting = AgentConnection(State.CONNECTING)
    nodes.count({"a": connecting}, at=0)
    nodes.count({}, at=1)

    assert nodes.count({"a": connecting}, at=DISCONNECTED_S) == 0
