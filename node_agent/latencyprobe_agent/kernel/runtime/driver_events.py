"""The events by which drivers free packets: hooked while targets send by a device with a driver.

`consume_skb` also happens for each message of a UNIX socket, and for many buffers besides. Most
packets between pods pass no driver that completes them, so these programs are detached after a
while without one that does. They are attached again with the next reading after such a packet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory

IDLE_S = 120.0


class DriverUse:
    """The time since a target's packet was given to a driver. `clock`: of seconds, for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used = clock()

    def is_recent(self, used: bool) -> bool:
        """Return True if the programs are wanted; `used`: since the last call."""
        if used:
            self._used = self._clock()
        return self._clock() - self._used < IDLE_S


class DriverEvents:
    """The programs for these events, of one object.

    `functions`: in the order to attach them; none where the kernel has no such event.
    """

    def __init__(
        self, functions: Iterable[str], attachments: Attachments, configuration: ConfigMemory
    ) -> None:
        self._functions = tuple(functions)
        self._attachments = attachments
        self._configuration = configuration
        self.use = DriverUse()
        self.are_followed = False
        self._note(bool(self._functions))

    def begin(self) -> None:
        """Count the time without use from now on."""
        self.use = DriverUse()

    def check(self) -> None:
        """See drivers free packets only while targets' packets get to a driver.

        Raises EngineError if a program cannot be attached again.
        """
        self.follow(self.use.is_recent(self._configuration.take_driver_use()))

    def follow(self, wanted: bool) -> None:
        """Have programs see drivers free packets, or spare all other buffers that.

        Raises EngineError if a program cannot be attached again.
        """
        if wanted == self.are_followed or not self._functions:
            return
        if wanted:
            self._attachments.keep_off(OffReason.NO_DRIVERS, ())
        self._note(wanted)
        if not wanted:
            self._attachments.keep_off(OffReason.NO_DRIVERS, self._functions)

    def _note(self, followed: bool) -> None:
        self.are_followed = followed
        settings = self._configuration.settings
        self._configuration.configure(replace(settings, sees_completions=followed))
