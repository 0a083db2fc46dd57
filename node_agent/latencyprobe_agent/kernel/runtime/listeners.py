"""Readings of the targets' listeners, which count the connections that these turned away.

A program of ours runs for each open file of the node then: see bpf/modules/listeners.bpf.c. That
takes longer with more open files, so readings get a thousandth of the time. A change of targets is
when the counting of their listeners begins, so there they may take a hundredth.
"""

from __future__ import annotations

import time
from contextlib import suppress
from enum import IntEnum

from latencyprobe_agent.kernel import libbpf


class Pause(IntEnum):
    """The pause after a reading, times what that one took."""

    NONE = 0
    BEFORE_CHANGE = 100
    USUAL = 1000


class ListenerReadings:
    """The readings of one object's listeners."""

    def __init__(self) -> None:
        self._ended_ns = 0
        self._took_ns = 0

    def read(self, link_fd: int, pause: Pause = Pause.USUAL) -> None:
        """Read by this link of an iterator, unless it is too early."""
        began_ns = time.monotonic_ns()
        if began_ns < self._ended_ns + pause * self._took_ns:
            return
        # Without a descriptor or memory the kernel keeps its counts for the next reading.
        with suppress(OSError):
            libbpf.run_iterator(link_fd)
        self._ended_ns = time.monotonic_ns()
        self._took_ns = self._ended_ns - began_ns
