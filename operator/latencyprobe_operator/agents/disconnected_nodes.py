"""Disconnected nodes: those whose agent has had no lasting connection for minutes.

A state shows a moment only: an agent that fails again and again is often Ready. And while all
agents are upgraded, some node is always without a connection, each for a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from latencyprobe_operator.api.status_fields import NodeState

LASTING_S = 60.0
"""The time for which an agent has to be Ready, without a break, for its connection to last."""
DISCONNECTED_S = 300.0
"""The time without a lasting connection after which a node is disconnected."""


class AgentConnection(NamedTuple):
    """The connection to a node's agent. `breaks`: how often it has failed so far."""

    state: NodeState
    breaks: int = 0


@dataclass(slots=True)
class _FollowedNode:
    """A node as it was last seen. `ready_since`: None while its connection is broken."""

    breaks: int
    lasted_until: float
    ready_since: float | None = None

    def take(self, connection: AgentConnection, at: float) -> None:
        is_ready = connection.state is NodeState.READY
        # A break may be over before anyone sees the state of it.
        if not is_ready or connection.breaks != self.breaks:
            self.ready_since = None
        self.breaks = connection.breaks
        if is_ready and self.ready_since is None:
            self.ready_since = at
        if self.ready_since is not None and at - self.ready_since >= LASTING_S:
            self.lasted_until = at


class DisconnectedNodes:
    """The connections by node, as they are seen every few seconds."""

    def __init__(self) -> None:
        self._nodes: dict[str, _FollowedNode] = {}

    def count(self, connections: Mapping[str, AgentConnection], *, at: float) -> int:
        """Take in the present ones of all nodes; return the number of disconnected nodes.

        A node that is new counts as if its connection had lasted until now.
        """
        self._nodes = {
            node: self._nodes.get(node) or _FollowedNode(connection.breaks, at)
            for node, connection in connections.items()
        }
        for node, connection in connections.items():
            self._nodes[node].take(connection, at)
        return sum(at - seen.lasted_until >= DISCONNECTED_S for seen in self._nodes.values())
