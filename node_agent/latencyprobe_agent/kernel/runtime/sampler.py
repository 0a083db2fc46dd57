"""The part of the packets, and of the time, that is measured: over the life of several objects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory
from latencyprobe_agent.kernel.runtime.overhead import OverheadClock
from latencyprobe_agent.kernel.runtime.packet_programs import PacketPrograms
from latencyprobe_agent.kernel.runtime.run_statistics import RunStatistics
from latencyprobe_agent.kernel.runtime.slices import TimeSlices
from latencyprobe_agent.kernel.runtime.statistics import SamplingRatios

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampledPrograms:
    """The parts of one object that sampling has to do with."""

    configuration: ConfigMemory
    packets: PacketPrograms
    run_statistics: RunStatistics


class Sampler:
    """The ratios of one object after the other, each from `follow` to `leave`.

    `clock`: samples the cost, in time slices if there are any. `keep`: keeps the measurements until
    now with the present ratios. `slices`: None while packets are measured all the time.
    """

    def __init__(self, clock: OverheadClock, keep: Callable[[], None]) -> None:
        self._clock = clock
        self._keep = keep
        self._programs: SampledPrograms | None = None
        self._shift = 0
        self._slice_shift = 0
        self._wanted_slice_shift = 0
        self.slices: TimeSlices | None = None

    @property
    def ratios(self) -> SamplingRatios:
        """The present ratios."""
        return SamplingRatios(2.0**-self._shift, 2.0**-self._slice_shift)

    def follow(self, programs: SampledPrograms) -> None:
        """Use these programs from now on, with the ratio that is wanted. Then call `begin`."""
        self._programs = programs
        programs.configuration.sample(self._shift)

    def begin(self) -> None:
        """Begin the time slices that are wanted, or the clock, once stopped modules are detached.

        The programs of stopped modules have no part in the cost, and none in a time slice.
        """
        programs = self._programs
        if programs is not None and self._wanted_slice_shift:
            self._begin_slices(programs)
        elif programs is not None:
            self._time(programs)

    def leave(self) -> None:
        """End the time slices and the clock of the present object, which ends."""
        self._programs = None
        if self.slices is not None:
            self.slices.stop()
            self.slices = None
        self._slice_shift = 0
        self._clock.stop()

    def sample(self, shift: int, slice_shift: int) -> None:
        """See `contract.Engine.sample`."""
        self._wanted_slice_shift = slice_shift
        programs = self._programs
        if programs is not None:
            if shift != self._shift:
                self._keep()  # with the previous ratio
                programs.configuration.sample(shift)
                if self.slices is None:
                    self._time(programs)
            if self.slices is None and slice_shift:
                self._keep()
                self._begin_slices(programs)
        self._shift = shift

    def _time(self, programs: SampledPrograms, *, in_slices: bool = False) -> None:
        of_packets = programs.packets.functions
        self._clock.follow(programs.run_statistics, of_packets, in_slices=in_slices)

    def _begin_slices(self, programs: SampledPrograms) -> None:
        self._slice_shift = self._wanted_slice_shift
        self._time(programs, in_slices=True)
        self.slices = TimeSlices(programs.packets, self._clock, self._begin_period)
        self.slices.start(self._slice_shift)

    def _begin_period(self) -> int:
        """Use the ratio that is wanted now, and return its shift."""
        programs = self._programs
        if programs is None or self._wanted_slice_shift == self._slice_shift:
            return self._slice_shift
        self._keep()
        self._slice_shift = self._wanted_slice_shift
        if not self._slice_shift:
            self.slices = None
            try:
                programs.packets.end_slices()
            except EngineError as error:
                log.warning("%s; trying again with the next change of modules", error)
            self._time(programs)
        return self._slice_shift
