"""Disconnected nodes: those whose agent has had no lasting connection for minutes.

A state shows a moment only: an agent that fails again and again is often Ready. And while all
agents are upgraded, some node is always without a connection, each for a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class DisconnectedNodes:
    """The connections by node, as they are seen every few seconds."""

    def __init__(self) -> None:
        self._breaks: dict[str, int] = {}
        self._ready_since: dict[str, float] = {}
        self._lasted_until: dict[str, float] = {}

    def count(self, connections: Mapping[str, AgentConnection], *, at: float) -> int:
        """Take in the present ones of all nodes; return the number of disconnected nodes.

        A node that is new counts as if its connection had lasted until now.
        """
        for known in (self._breaks, self._ready_since, self._lasted_until):
            for gone in known.keys() - connections.keys():
                del known[gone]
        for node, connection in connections.items():
            self._take(node, connection, at)
        return sum(at - until >= DISCONNECTED_S for until in self._lasted_until.values())

    def _take(self, node: str, connection: AgentConnection, at: float) -> None:
        state, breaks = connection
        self._lasted_until.setdefault(node, at)
        # A break may be over before anyone sees the state of it.
        if state is not NodeState.READY or self._breaks.get(node, breaks) != breaks:
            self._ready_since.pop(node, None)
        self._breaks[node] = breaks
        if state is NodeState.READY and at - self._ready_since.setdefault(node, at) >= LASTING_S:
            self._lasted_until[node] = at
