"""The two states of one agent: the desired one, and the applied one."""

from __future__ import annotations

from collections.abc import Callable

from latencyprobe.process.notices import Notices
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState


class StateSync:
    """The state that one agent should have, and the state that it has applied."""

    __slots__ = ("_applied", "_notices", "_settled", "desired", "on_change")

    def __init__(self, desired: DesiredNodeState) -> None:
        self.desired = desired
        self.on_change: Callable[[], None] | None = None
        """Called after the desired state has changed."""
        self._settled = False
        """The agent had the desired state when the connection was seen last."""
        self._applied: DesiredNodeState | None = None
        self._notices = Notices()

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
            self._settled = False
            self._notices.notify()
            if self.on_change:
                self.on_change()

    async def wait_changed(self) -> None:
        """Return once the desired state changes."""
        desired = self.desired
        while self.desired is desired:
            await self._notices.wait()

    async def wait_settled(self) -> None:
        """Return once the agent has the desired state."""
        while not self._settled:
            await self._notices.wait()

    def begin(self) -> None:
        """Begin a session: the agent may have lost its state."""
        self._applied = None

    def mark_applied(self, state: DesiredNodeState) -> None:
        """Note that the agent has applied this state."""
        self._applied = state
        if state == self.desired:
            self._settled = True
            self._notices.notify()

    def mark_lost(self) -> None:
        """Note that the connection is lost, and the agent's state with it."""
        self._applied = None
        self._settled = False
