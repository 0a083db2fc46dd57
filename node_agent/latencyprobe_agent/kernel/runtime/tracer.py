"""One trace over the life of several loaded objects: its packets in order, its counts added up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from latencyprobe.domain.packets import TraceCounts, TracedPacket
from latencyprobe_agent.kernel.contract import TraceSpec
from latencyprobe_agent.kernel.runtime.grace_period import wait_for_running_programs
from latencyprobe_agent.kernel.runtime.ring import BATCH, PacketRing


class Tracer:
    """The reader of the present object's ring.

    Packets wait in the ring. Only the last packets of a closed ring wait here: no more than fit
    into a ring.
    """

    def __init__(self) -> None:
        self._spec: TraceSpec | None = None
        self._ring: PacketRing | None = None
        self._left: deque[TracedPacket] = deque()
        self._before = TraceCounts()  # of the closed rings
        self._is_due = asyncio.Event()

    def set(self, spec: TraceSpec | None) -> None:
        """See `contract.Engine.trace`."""
        if spec is not None and self._spec is None:
            self._begin()
        self._spec = spec
        if self._ring is not None:
            self._ring.set(spec)
            if spec is None:
                wait_for_running_programs()
        self._is_due.set()

    def follow(self, ring: PacketRing) -> None:
        """Read packets from this ring from now on."""
        self._ring = ring
        ring.set(self._spec)
        self._is_due.set()

    def leave(self) -> None:
        """Take the packets that are left in the ring, before its object is closed. Idempotent."""
        ring, self._ring = self._ring, None
        if ring is None:
            return
        asyncio.get_running_loop().remove_reader(ring.fileno())
        ring.set(None)
        wait_for_running_programs()
        while packets := ring.take():
            self._left.extend(packets)
        self._before += ring.counts
        self._is_due.set()

    @property
    def counts(self) -> TraceCounts:
        """See `contract.Engine.trace_counts`."""
        return self._before + self._ring.counts if self._ring is not None else self._before

    async def next_packets(self) -> Sequence[TracedPacket]:
        """See `contract.Engine.traced`."""
        while not (packets := self._take()) and self._spec is not None:
            self._is_due.clear()
            self._watch()
            await self._is_due.wait()
        return packets

    def _begin(self) -> None:
        """Discard the packets of an earlier trace."""
        self._left.clear()
        self._before = TraceCounts()
        if self._ring is not None:
            while self._ring.take():
                pass
            self._before -= self._ring.counts

    def _take(self) -> Sequence[TracedPacket]:
        if self._left:
            return [self._left.popleft() for _ in range(min(BATCH, len(self._left)))]
        return self._ring.take() if self._ring is not None else []

    def _watch(self) -> None:
        """Set `_is_due` once the ring has packets."""
        ring = self._ring
        if ring is None:
            return
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.remove_reader(ring.fileno())
            self._is_due.set()

        loop.add_reader(ring.fileno(), wake)
