"""Time slices: the programs of packets are attached for one part of the time in 2**shift.

A period begins with its slice, which has four phases:

- The programs are attached, and no packet counts yet: some have begun unseen.
- Packets that begin are measured. Only this phase makes the ratio. In its last part the cost is
  sampled. The kernel's statistics lengthen the stages of packets, so they are on for few of them.
- Only packets that have begun are measured, to their ends.
- The programs are detached, until the next period.

Nothing but detaching spares a packet the call of a program. BPF_LINK_UPDATE puts another program in
its place, and links of tracing programs refuse it: bpf_raw_tp_link_lops and
bpf_tracing_link_lops have no `update_prog`, kernel/bpf/syscall.c. To attach and detach ten takes
3 ms of CPU time; none of that holds a lock of the network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from latencyprobe_agent.kernel.contract import (
    SLICE_BEGIN_S,
    SLICE_END_S,
    EngineError,
    cost_sample_s,
    period_s,
    slice_s,
)
from latencyprobe_agent.kernel.libbpf import KernelRefusedError
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock

log = logging.getLogger(__name__)


class SlicedPrograms(Protocol):
    """Programs of which those of packets are attached in time slices."""

    def begin_slice(self) -> None:
        """Attach the programs of packets; measure none yet. Raises EngineError."""

    def measure_packets(self, wanted: bool) -> None:
        """Measure packets that begin from now on, or only those that have begun."""

    def end_slice(self) -> None:
        """Detach the programs of packets."""

    def end_slices(self) -> None:
        """Measure packets all the time again. Raises EngineError."""


class TimeSlices:
    """The time slices of one object, from `start` to `stop`. Needs a running event loop.

    `on_period`: called before each period but the first; returns the shift from then on. With 0 the
    slices end: the owner drops this object. `clock`: gets the cost of each slice.
    """

    def __init__(
        self, programs: SlicedPrograms, clock: OverheadClock, on_period: Callable[[], int]
    ) -> None:
        self._programs = programs
        self._clock = clock
        self._on_period = on_period
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._shift = 0
        self._period_at = 0.0
        # Since this shift holds: its beginning, and the time in which packets were measured.
        self._since = 0.0
        self._opened_s = 0.0
        self._opened_at = 0.0
        self._is_attached = False

    def start(self, shift: int) -> None:
        """Begin the first period."""
        self._period_at = self._loop.time()
        self._use(shift)
        self._begin()

    def stop(self) -> None:
        """Begin no phase any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def period_s(self) -> float:
        """The time from one slice to the next."""
        return period_s(self._shift)

    def _begin(self) -> None:
        try:
            self._programs.begin_slice()
            self._is_attached = True
        except EngineError as error:
            self._is_attached = False
            log.warning("%s; trying again with the next time slice", error)
        self._timer = self._loop.call_later(SLICE_BEGIN_S, self._open)

    def _open(self) -> None:
        """Measure, unless late timers made the slices before too long."""
        due_s, usual_s = self._due_s(), slice_s(self._shift)
        if due_s < usual_s / 2:
            self._timer = self._loop.call_later(SLICE_END_S, self._rest)
            return
        self._programs.measure_packets(True)
        self._opened_at = self._loop.time()
        measured_s = min(due_s, 2 * usual_s)
        closes_at, sample_s = self._opened_at + measured_s, cost_sample_s(measured_s)
        self._timer = self._loop.call_at(
            closes_at - sample_s, lambda: self._sample_cost(closes_at, sample_s / 2)
        )

    def _due_s(self) -> float:
        """Return the part of the time until the period's end that was not measured yet."""
        until = self._period_at + self.period_s
        return (until - self._since) * 2.0**-self._shift - self._opened_s

    def _sample_cost(self, closes_at: float, least_s: float) -> None:
        """Sample until the slice closes. After a late timer that is `least_s` later.

        A sample of no time could have any cost.
        """
        if self._is_attached:
            try:
                self._clock.begin()
            except KernelRefusedError as error:
                log.warning("%s; trying again with the next time slice", error)
        self._timer = self._loop.call_at(max(closes_at, self._loop.time() + least_s), self._close)

    def _close(self) -> None:
        self._clock.end(self._shift)
        self._programs.measure_packets(False)
        self._opened_s += self._loop.time() - self._opened_at
        self._timer = self._loop.call_later(SLICE_END_S, self._rest)

    def _rest(self) -> None:
        self._programs.end_slice()
        self._period_at = max(self._period_at + self.period_s, self._loop.time())
        self._timer = self._loop.call_at(self._period_at, self._end_period)

    def _end_period(self) -> None:
        shift = self._on_period()
        if not shift:
            return
        if shift != self._shift:
            self._use(shift)
        self._begin()

    def _use(self, shift: int) -> None:
        self._shift, self._since, self._opened_s = shift, self._period_at, 0.0
