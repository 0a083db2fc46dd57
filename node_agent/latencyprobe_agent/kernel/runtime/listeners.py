"""Readings of the targets' listeners, which count the connections that these turned away.

A program of ours runs for each open file of the node then: see bpf/modules/listeners.bpf.c. That
takes longer with more open files, so readings get a thousandth of the time.
"""

from __future__ import annotations

import time
from contextlib import suppress

from latencyprobe_agent.kernel import libbpf

_PAUSE = 1000
"""After a reading, times what it took."""


class ListenerReadings:
    """The readings of one object's listeners. `due_ns`: the earliest time of the next one."""

    def __init__(self) -> None:
        self.due_ns = 0

    def read(self, link_fd: int, *, at_once: bool = False) -> None:
        """Read by this link of an iterator, unless it is too early.

        `at_once`: without a pause after the last reading.
        """
        began_ns = time.monotonic_ns()
        if began_ns < self.due_ns and not at_once:
            return
        # Without a descriptor or memory the kernel keeps its counts for the next reading.
        with suppress(OSError):
            libbpf.run_iterator(link_fd)
        ended_ns = time.monotonic_ns()
        self.due_ns = ended_ns + _PAUSE * (ended_ns - began_ns)
