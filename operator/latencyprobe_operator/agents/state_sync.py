"""The two states of one agent: the desired one, and the applied one."""

from __future__ import annotations

import asyncio

from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState


class StateSync:
    """The state that one agent should have, and the state that it has applied."""

    def __init__(self, desired: DesiredNodeState) -> None:
        self.desired = desired
        self.settled = asyncio.Event()
        """Set while the agent has the desired state."""
        self._applied: DesiredNodeState | None = None
        self._changed = asyncio.Event()

    @property
    def applied(self) -> bool:
        """Return whether the agent has applied the desired state in this session."""
        return self._applied == self.desired

    @property
    def idle(self) -> bool:
        """Return whether there is nothing to measure, and the agent knows it."""
        return self._applied is not None and self._applied == self.desired == NO_STATE

    def want(self, state: DesiredNodeState) -> None:
        """Make this the desired state."""
        if state != self.desired:
            self.desired = state
            self.settled.clear()
            self._changed.set()

    async def wait_changed(self) -> None:
        """Return once the desired state has changed since the last return."""
        await self._changed.wait()
        self._changed.clear()

    def begin(self) -> None:
        """Begin a session: the agent may have lost its state."""
        self._applied = None

    def mark_applied(self, state: DesiredNodeState) -> None:
        """Note that the agent has applied this state."""
        self._applied = state
        if state == self.desired:
            self.settled.set()

    def mark_lost(self) -> None:
        """Note that the connection is lost, and the agent's state with it."""
        self._applied = None
        self.settled.clear()
