"""The cost of our programs, by the kernel's own statistics, sampled regularly.

The statistics have the run time of a program and the number of its runs, but not the time of the
calls: see dispatch.py.

They (BPF_ENABLE_STATS, 5.8+) read the clock twice for each run of each program, which
costs as much as a small program itself. So they are on for a second of every ten.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import Dispatch, Overhead
from latencyprobe_agent.kernel.runtime.dispatch import DispatchMeasurement
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject, Runs

SAMPLE_S = 1.0
PAUSE_S = 9.0


class OverheadClock:
    """The sampling of one object's programs, from `follow` to `stop`."""

    def __init__(self, dispatch: DispatchMeasurement | None = None) -> None:
        self._dispatch = dispatch or DispatchMeasurement()
        self._figure = Overhead(None)
        self._missed_before = 0
        self._object: LoadedObject | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._statistics_fd: int | None = None
        self._began = 0.0
        self._runs = Runs(0, 0)

    def overhead(self) -> Overhead:
        """Return the newest figure, and the missed runs of all objects until now."""
        missed = self._object.missed_runs() if self._object is not None else 0
        return replace(
            self._figure,
            missed_runs=self._missed_before + missed,
            dispatch=self._dispatch.dispatch,
        )

    def follow(self, loaded: LoadedObject) -> None:
        """Sample these programs from now on; the first figure comes after a second."""
        self.stop()
        self._object = loaded
        self._sample()

    def stop(self) -> None:
        """Stop sampling. Idempotent; call it before the object is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_statistics()
        self._missed_before = self.overhead().missed_runs
        self._object = None
        self._figure = Overhead(None, self._figure.figure)

    def _sample(self) -> None:
        assert self._object is not None
        try:
            self._statistics_fd = libbpf.enable_run_time_statistics()
        except libbpf.KernelRefusedError as error:
            if is_transient(error):
                self._sample_later()
            return  # else not known on this kernel: the figure says so
        self._began = time.monotonic()
        self._runs = self._object.runs()
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_S, self._end_sample)

    def _end_sample(self) -> None:
        assert self._object is not None
        runs = self._object.runs() - self._runs
        elapsed_s = time.monotonic() - self._began
        percent = cost_percent(runs, self._dispatch.dispatch, elapsed_s)
        self._figure = Overhead(percent, self._figure.figure + 1)
        self._close_statistics()
        self._sample_later()

    def _sample_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._sample)

    def _close_statistics(self) -> None:
        if self._statistics_fd is not None:
            os.close(self._statistics_fd)
            self._statistics_fd = None


def cost_percent(runs: Runs, dispatch: Dispatch, elapsed_s: float) -> float:
    """Return what packets paid for these runs, in percent of one core."""
    return 100 * (runs.time_ns + runs.number * dispatch.ns) / (elapsed_s * 1e9)
