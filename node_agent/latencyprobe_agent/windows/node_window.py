"""The figures of the node as a whole over the window of one probe."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from latencyprobe.domain.measurement import (
    NOTHING_OF_THE_NODE,
    NodeMeasurement,
    largest_counters,
)
from latencyprobe_agent.windows.packing import pack_stages, unpack_stages
from latencyprobe_agent.windows.running import MAX_COUNTERS

# One for each interrupt handler; a report holds as many.
_MAX_STAGES = 4096


@dataclass(frozen=True, slots=True)
class _NodeSlot:
    slot: int
    counters: dict[str, int]
    packed: bytes

    @classmethod
    def of(cls, slot: int, measurement: NodeMeasurement) -> _NodeSlot:
        counters = largest_counters(measurement.counters, MAX_COUNTERS)
        return cls(slot, counters, pack_stages(_largest_stages(measurement).stages))

    @property
    def measurement(self) -> NodeMeasurement:
        return NodeMeasurement(unpack_stages(self.packed), self.counters)


class WindowOfNode:
    """The measurements of the newest slots of time, packed. The caller numbers the slots."""

    def __init__(self) -> None:
        self._entries: deque[_NodeSlot] = deque()

    def advance(self, measurement: NodeMeasurement, *, slot: int, oldest: int) -> None:
        """Add a measurement to the newest slot, and forget the slots before `oldest`."""
        while self._entries and self._entries[0].slot < oldest:
            self._entries.popleft()
        if not measurement:
            return
        if self._entries and self._entries[-1].slot == slot:
            measurement = self._entries.pop().measurement + measurement
        self._entries.append(_NodeSlot.of(slot, measurement))

    def value(self) -> NodeMeasurement:
        """Return the sum of all entries."""
        total = NOTHING_OF_THE_NODE
        for entry in self._entries:
            total += entry.measurement
        counters = largest_counters(total.counters, MAX_COUNTERS)
        return _largest_stages(NodeMeasurement(total.stages, counters))


def _largest_stages(measurement: NodeMeasurement) -> NodeMeasurement:
    if len(measurement.stages) <= _MAX_STAGES:
        return measurement
    largest = heapq.nlargest(
        _MAX_STAGES, measurement.stages.items(), key=lambda each: each[1].histogram.count
    )
    return NodeMeasurement(dict(largest), measurement.counters)
