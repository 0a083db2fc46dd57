"""Readings of the targets' listeners, which count the connections that these turned away.

A program of ours runs for each open file of the node then: see bpf/modules/listeners.bpf.c. That
takes longer with more open files, so readings get a thousandth of the time. A change of targets is
when the counting of their listeners begins, so there they may take a hundredth.
"""

from __future__ import annotations

import time
from contextlib import suppress

from latencyprobe_agent.kernel import libbpf

# After a reading, times what it took; before that of a change of targets.
_PAUSE = 1000
_PAUSE_BEFORE_CHANGE = 100


class ListenerReadings:
    """The readings of one object's listeners."""

    def __init__(self) -> None:
        self._ended_ns = 0
        self._took_ns = 0

    def read(self, link_fd: int) -> None:
        """Read by this link of an iterator, unless it is too early."""
        self._read_after(_PAUSE, link_fd)

    def read_for_change(self, link_fd: int) -> None:
        """Read for new targets, unless it is too early even for that."""
        self._read_after(_PAUSE_BEFORE_CHANGE, link_fd)

    def read_at_once(self, link_fd: int) -> None:
        """Read, whenever the last reading was."""
        self._read_after(0, link_fd)

    def _read_after(self, pause: int, link_fd: int) -> None:
        began_ns = time.monotonic_ns()
        if began_ns < self._ended_ns + pause * self._took_ns:
            return
        # Without a descriptor or memory the kernel keeps its counts for the next reading.
        with suppress(OSError):
            libbpf.run_iterator(link_fd)
        self._ended_ns = time.monotonic_ns()
        self._took_ns = self._ended_ns - began_ns
