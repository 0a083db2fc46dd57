"""The programs of packets: attached all the time, or in time slices. See slices.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason
from latencyprobe_agent.kernel.runtime.configuration import ConfigMemory, TimeSlice


class PacketPrograms:
    """The programs of packets of one object. `functions`: returns them, which may change."""

    def __init__(
        self,
        functions: Callable[[], Collection[str]],
        attachments: Attachments,
        configuration: ConfigMemory,
    ) -> None:
        self.functions = functions
        self._attachments = attachments
        self._configuration = configuration

    def begin_slice(self) -> None:
        """Attach the programs of packets for another time slice; measure none yet.

        Raises EngineError; the programs may then be attached in part.
        """
        number = self._configuration.settings.time_slice.number + 1
        self._use(TimeSlice(number, time.monotonic_ns(), is_open=False))
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, ())

    def measure_packets(self, wanted: bool) -> None:
        """Measure packets that begin from now on, or only those that have begun."""
        self._use(replace(self._configuration.settings.time_slice, is_open=wanted))

    def end_slice(self) -> None:
        """Detach the programs of packets. Those on devices stay, and do nothing."""
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, self.functions())
        self._use(replace(self._configuration.settings.time_slice, is_over=True))

    def end_slices(self) -> None:
        """Measure packets all the time again. Raises EngineError."""
        self._attachments.keep_off(OffReason.BETWEEN_SLICES, ())
        self._use(TimeSlice())

    def _use(self, time_slice: TimeSlice) -> None:
        settings = self._configuration.settings
        self._configuration.configure(replace(settings, time_slice=time_slice))
