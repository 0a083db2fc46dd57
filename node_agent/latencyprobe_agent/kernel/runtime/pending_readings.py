"""Readings of pending waits: over the sockets with a state, or over all open files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from latencyprobe.domain.pending import Pending
from latencyprobe_agent.kernel.hooks import READ_PENDING, READ_PENDING_STATES
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.optional_events import OptionalEvents
from latencyprobe_agent.kernel.runtime.pending import PendingMemory


class PendingReadings:
    """The readings of one object. `memory`: gets their figures.

    `link`: returns the link of an attached program. `processes`: are seen while some target is
    chosen by process.
    """

    def __init__(
        self,
        memory: PendingMemory,
        link: Callable[[str], int | None],
        configuration: ConfigMemory,
        processes: OptionalEvents,
    ) -> None:
        self.memory = memory
        self._link = link
        self._configuration = configuration
        self._processes = processes
        self._visited_generation = 0

    def read(self, slots: Collection[int]) -> Mapping[int, Mapping[str, Pending]]:
        """Return what is pending in the sockets of these slots; nothing where none can be read.

        Sockets of processes are found by their open files. So are those without a state, which were
        open before the targets changed.
        """
        generation = self._configuration.settings.generation
        is_changed = self._visited_generation != generation
        link, fast = self._link(READ_PENDING), self._link(READ_PENDING_STATES)
        if fast is not None and not (is_changed or self._processes.are_seen):
            link = fast
        if link is None:
            return {}
        found = self.memory.read(link, slots)
        if self.memory.has_read:
            self._visited_generation = generation
        return found
