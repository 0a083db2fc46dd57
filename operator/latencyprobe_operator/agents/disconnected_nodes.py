"""Disconnected nodes: those whose agent has had no lasting connection for minutes.

A state shows a moment only: an agent that fails again and again is often Ready. And while all
agents are upgraded, some node is always without a connection, each for a minute.
"""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe_operator.api.status_fields import NodeState

LASTING_S = 60.0
"""The time for which an agent has to be Ready, without a break, for its connection to last."""
DISCONNECTED_S = 300.0
"""The time without a lasting connection after which a node is disconnected."""


class DisconnectedNodes:
    """The connections by node, as they are seen every few seconds."""

    def __init__(self) -> None:
        self._ready_since: dict[str, float] = {}
        self._lasted_until: dict[str, float] = {}

    def count(self, states: Mapping[str, NodeState], *, at: float) -> int:
        """Take in the present states of all nodes; return the number of disconnected nodes.

        A node that is new counts as if its connection had lasted until now.
        """
        for known in (self._ready_since, self._lasted_until):
            for gone in known.keys() - states.keys():
                del known[gone]
        for node, state in states.items():
            self._take(node, state, at)
        return sum(at - until >= DISCONNECTED_S for until in self._lasted_until.values())

    def _take(self, node: str, state: NodeState, at: float) -> None:
        self._lasted_until.setdefault(node, at)
        if state is not NodeState.READY:
            self._ready_since.pop(node, None)
        elif at - self._ready_since.setdefault(node, at) >= LASTING_S:
            self._lasted_until[node] = at
