"""The cost of our programs, by the kernel's own statistics, sampled regularly.

The statistics have the run time of a program and the number of its runs, but not the time of the
calls: see dispatch.py.

They (BPF_ENABLE_STATS, 5.8+) read the clock twice for each run of each program, which costs as much
as a small program itself. So they are on for an eighth of the time, or in the last part of each
time slice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import (
    Dispatch,
    HookCost,
    Overhead,
    attached_share,
    period_s,
)
from latencyprobe_agent.kernel.runtime.dispatch import DispatchMeasurement
from latencyprobe_agent.kernel.runtime.run_statistics import Runs

SAMPLE_S = 0.25
PAUSE_S = 1.75
_NO_RUNS = Runs(0, 0)


class RunningPrograms(Protocol):
    """Programs whose runs the kernel counts."""

    def runs(self) -> Mapping[str, Runs]:
        """Return the runs of the programs, by function; they do not grow without the statistics."""

    def missed_runs(self) -> int:
        """Return the number of runs that the kernel left out, of all programs."""

    def hook_of(self, function: str) -> str:
        """Return the name of a program's hook."""


class OverheadClock:
    """The sampling of one object's programs, from `follow` to `stop`."""

    def __init__(self, dispatch: DispatchMeasurement | None = None) -> None:
        self._dispatch = dispatch or DispatchMeasurement()
        self._figure = Overhead(None)
        self._missed_before = 0
        self._object: RunningPrograms | None = None
        self._of_packets: Callable[[], Collection[str]] = tuple
        self._timer: asyncio.TimerHandle | None = None
        self._statistics_fd: int | None = None
        self._began = 0.0
        self._runs: Mapping[str, Runs] = {}

    def overhead(self) -> Overhead:
        """Return the newest figure, and the missed runs of all objects until now."""
        missed = self._object.missed_runs() if self._object is not None else 0
        return replace(
            self._figure,
            missed_runs=self._missed_before + missed,
            dispatch=self._dispatch.dispatch,
        )

    def follow(
        self,
        programs: RunningPrograms,
        of_packets: Callable[[], Collection[str]],
        *,
        in_slices: bool = False,
    ) -> None:
        """Sample these programs from now on; the first figure comes after a quarter of a second.

        `of_packets`: returns those that are attached in time slices only, if there are any.
        `in_slices`: in time slices of the caller's, from `begin` to `end`.
        """
        self.stop()
        self._object = programs
        self._of_packets = of_packets
        if not in_slices:
            self._sample()

    def stop(self) -> None:
        """Stop sampling. Idempotent; call it before the object is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_statistics()
        self._missed_before = self.overhead().missed_runs
        self._object = None
        self._of_packets = tuple
        self._figure = Overhead(None, self._figure.figure)

    def begin(self) -> None:
        """Begin a sample; without the statistics there is none. Raises KernelRefusedError."""
        assert self._object is not None
        self._close_statistics()
        self._statistics_fd = libbpf.enable_run_time_statistics()
        self._began = time.monotonic()
        self._runs = self._object.runs()

    def end(self, slice_shift: int = 0) -> None:
        """End a sample, which makes a new figure.

        `slice_shift`: of the time slice that it was taken in. The programs of packets cost as much
        while they are attached, and the others all the time.
        """
        if self._object is None or self._statistics_fd is None:
            return
        elapsed_s = time.monotonic() - self._began
        in_period_s = period_s(slice_shift) if slice_shift else elapsed_s
        now = self._object.runs()
        runs = {name: each - self._runs.get(name, _NO_RUNS) for name, each in now.items()}
        of_packets = frozenset(self._of_packets())
        hooks = {name: self._object.hook_of(name) for name in runs}
        seconds = dict.fromkeys(runs, elapsed_s)
        seconds |= dict.fromkeys(of_packets & runs.keys(), elapsed_s / attached_share(slice_shift))
        # Iterators run when the agent reads, which a short sample may contain by chance.
        iterators = [name for name in runs if hooks[name].startswith("iter/")]
        seconds |= dict.fromkeys(iterators, max(in_period_s, elapsed_s))
        costs = costs_of_hooks(runs, hooks, seconds, of_packets, self._dispatch.dispatch)
        total = sum(each.cpu_percent for each in costs)
        self._figure = Overhead(
            total, self._figure.figure + 1, hooks=costs, slice_shift=slice_shift
        )
        self._close_statistics()

    def _sample(self) -> None:
        try:
            self.begin()
        except libbpf.KernelRefusedError as error:
            if is_transient(error):
                self._sample_later()
            return  # else not known on this kernel: the figure says so
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_S, self._end_sample)

    def _end_sample(self) -> None:
        self.end()
        self._sample_later()

    def _sample_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._sample)

    def _close_statistics(self) -> None:
        if self._statistics_fd is not None:
            os.close(self._statistics_fd)
            self._statistics_fd = None


def costs_of_hooks(
    runs: Mapping[str, Runs],
    hooks: Mapping[str, str],
    seconds: Mapping[str, float],
    of_packets: Collection[str],
    dispatch: Dispatch,
) -> tuple[HookCost, ...]:
    """Return what packets paid at each hook, the most expensive one first.

    All by function: the runs, the name of the hook, and the time in which that was paid.
    """
    sums: defaultdict[tuple[str, bool], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, each in runs.items():
        key = hooks[name], name not in of_packets
        run_percent, call_percent = sums[key]
        percent_of_ns = 100 / (seconds[name] * 1e9)
        sums[key] = (
            run_percent + each.time_ns * percent_of_ns,
            call_percent + each.number * dispatch.ns * percent_of_ns,
        )
    costs = (HookCost(hook, *paid, is_permanent) for (hook, is_permanent), paid in sums.items())
    return tuple(sorted(costs, key=lambda cost: (-cost.cpu_percent, cost.hook)))
