"""Requests that wait for the collector: a queue of a bounded size, whose oldest ones go first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from latencyprobe.otlp.encoding import ExportRequest

QUEUE_BYTES = 8 << 20


class Backlog:
    """A queue of requests, for one consumer.

    The newest snapshot is kept as a whole, even if it is larger than the limit: it is bounded by
    the number of series. The request that is being sent is not discarded.
    """

    def __init__(self, limit_bytes: int = QUEUE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[ExportRequest] = deque()
        self._taken: ExportRequest | None = None
        self._size = 0
        self._has_some = asyncio.Event()

    @property
    def size(self) -> int:
        """The number of bytes, those of the request that is being sent included."""
        return self._size

    @property
    def points(self) -> int:
        """The number of data points, likewise."""
        taken = self._taken.points if self._taken else 0
        return taken + sum(request.points for request in self._waiting)

    def add(self, snapshot: Sequence[ExportRequest]) -> int:
        """Add a snapshot, and return the number of older data points that were discarded for it."""
        self._waiting.extend(snapshot)
        self._size += sum(len(request.data) for request in snapshot)
        lost = 0
        while self._size > self._limit_bytes and len(self._waiting) > len(snapshot):
            oldest = self._waiting.popleft()
            self._size -= len(oldest.data)
            lost += oldest.points
        if self._waiting:
            self._has_some.set()
        return lost

    async def take(self) -> ExportRequest:
        """Return the oldest request, once there is one, until `finish` or `put_back`."""
        await self._has_some.wait()
        self._taken = self._waiting.popleft()
        if not self._waiting:
            self._has_some.clear()
        return self._taken

    def finish(self) -> None:
        """Forget the request that was taken."""
        if self._taken is not None:
            self._size -= len(self._taken.data)
            self._taken = None

    def put_back(self) -> None:
        """Keep the request that was taken, as the oldest one."""
        if self._taken is not None:
            self._waiting.appendleft(self._taken)
            self._taken = None
            self._has_some.set()
