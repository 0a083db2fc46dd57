"""Figures that wait for the end of their interval, since their target has left before it."""

from __future__ import annotations

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe_agent.windows.packing import PackedInterval, pack, unpack
from latencyprobe_agent.windows.running import bounded


class EarlyFigures:
    """A measurement that can be packed: an interval may be long, and many targets leave in it.

    It is packed by `pack` alone, so that figures which do not stay cost no packing.
    """

    __slots__ = ("_packed", "_rest")

    def __init__(self) -> None:
        self._packed: PackedInterval | None = None
        # Beside the packed ones, or all of them.
        self._rest = NOTHING

    def put(self, measurement: Measurement) -> None:
        """Keep this measurement in place of the one before."""
        self._packed, self._rest = None, measurement

    def pack(self) -> None:
        """Pack the measurement, if there is one that is not."""
        if self._rest and self._packed is None:
            self._packed = pack(bounded(self._rest))
            self._rest = Measurement(pending=self._rest.pending, peers=self._rest.peers)

    def value(self) -> Measurement:
        """Return the measurement; an empty one if there is none."""
        if self._packed is None:
            return self._rest
        return unpack(self._packed) + self._rest
