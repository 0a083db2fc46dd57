"""Reading the node's histograms: `node_stats` (bpf/modules/irq.bpf.c) as a measurement.

A *row* is one histogram. Each softirq vector has a row for its waiting time and one for its run
time. Each interrupt handler has a row, at the number of its name in `handler_names`.
"""

from __future__ import annotations

import mmap

from latencyprobe.domain.measurement import NodeMeasurement, NodeStage, StageMeasurement
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import (
    HANDLER_NAMES,
    MAX_HANDLERS,
    NODE_ROW,
    NODE_ROWS,
    ROW_HANDLERS,
    VECTORS,
)
from latencyprobe_agent.kernel.runtime.statistics import STAGE_BYTES, decode_stage, is_empty

# Of handlers without a row of their own, only the number of runs is known, as `lost`.
_OTHERS = NodeStage("irq.hard", "(others)")
_VECTOR_ROWS = (
    *(NodeStage("irq.softwait", vector) for vector in VECTORS),
    *(NodeStage("irq.softrun", vector) for vector in VECTORS),
)


class NodeStatisticsMemory:
    """The two halves of `node_stats`, mapped into this process, and the handlers' names."""

    def __init__(self, map_fd: int, names_fd: int) -> None:
        self._memory = mmap.mmap(map_fd, 2 * NODE_ROWS * NODE_ROW.size)
        self._names_fd = names_fd
        self._names: dict[int, str] = {}
        self._zeroes = bytes(STAGE_BYTES)

    def take(self, epoch: int) -> NodeMeasurement:
        """Return the measurement of one half, and zero it.

        Call this only for the inactive half, which no program writes.
        """
        stages: dict[NodeStage, StageMeasurement] = {}
        for row in range(NODE_ROWS):
            offset = (epoch * NODE_ROWS + row) * NODE_ROW.size
            if is_empty(self._memory, offset):
                continue
            content = self._memory[offset : offset + STAGE_BYTES]
            self._memory[offset : offset + STAGE_BYTES] = self._zeroes
            key = self._key(row)
            measured = decode_stage(content, 0, 1.0)
            # Handlers may have the same name, as those of a device's like queues may.
            stages[key] = stages[key] + measured if key in stages else measured
        return NodeMeasurement(stages)

    def close(self) -> None:
        """Unmap; the map itself lives as long as its descriptors."""
        self._memory.close()

    def _key(self, row: int) -> NodeStage:
        if row < ROW_HANDLERS:
            return _VECTOR_ROWS[row]
        handler = row - ROW_HANDLERS
        return _OTHERS if handler == MAX_HANDLERS else NodeStage("irq.hard", self._name(handler))

    def _name(self, handler: int) -> str:
        """Return the name of a handler; read once, since a handler keeps its number."""
        if handler not in self._names:
            key = HANDLER_NAMES.key.pack(handler)
            try:
                text = libbpf.look_up(self._names_fd, key, HANDLER_NAMES.value.size)
            except OSError:
                return f"handler {handler}"  # The next call tries again.
            name = (text or b"").partition(b"\0")[0].decode(errors="replace")
            self._names[handler] = name or f"handler {handler}"
        return self._names[handler]
