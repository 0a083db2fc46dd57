"""Events that programs see only while a target needs them, so that others are spared the cost."""

from __future__ import annotations

from collections.abc import Iterable

from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason


class OptionalEvents:
    """The programs of such events, attached at first. `reason`: keeps them off while not needed."""

    def __init__(
        self, reason: OffReason, functions: Iterable[str], attachments: Attachments
    ) -> None:
        self._reason = reason
        self._functions = tuple(functions)
        self._attachments = attachments
        self.are_seen = True

    def see(self, wanted: bool) -> bool:
        """Attach the programs, or detach them; return True if that is a change.

        Those that are detached may still run for a moment. Raises EngineError if a program cannot
        be attached again.
        """
        if wanted == self.are_seen:
            return False
        self._attachments.keep_off(self._reason, () if wanted else self._functions)
        self.are_seen = wanted
        return True
