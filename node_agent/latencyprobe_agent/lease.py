"""The lease: a client that reads reports keeps the desired state in force.

One stream of reports is open at a time. If no stream is open for as long as the lease of the
desired state, the agent detaches everything.

A term is a client's time as the leader. A client of an older term than the newest is refused until
the lease has ended. Then any term is taken: the cluster may have lost its record of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import NoReturn

from latencyprobe.process.tasks import first_to_end

# Of a term, where the state in force has no lease.
TERM_S = 300.0

Pump = Callable[[], Coroutine[object, object, None]]
"""A function that sends the reports of one stream, until it is cancelled."""


class StreamEndedError(Exception):
    """A report stream that the agent ended, for another stream or for its shutdown."""

    def __init__(self, message: str, *, superseded: bool) -> None:
        self.superseded = superseded
        super().__init__(message)


class StaleTermError(Exception):
    """A call of a client that is not the leader any more."""

    def __init__(self, offered: int, known: int) -> None:
        self.offered, self.known = offered, known
        super().__init__(
            f"term {offered} is older than {known}, the newest that this agent knows: another "
            "client leads. If no client does, the agent forgets its term at the end of the lease, "
            "for which no client has read reports"
        )


class Lease:
    """The one open stream, or the time since when no stream is open. It knows the newest term."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stream: _ReportStream | None = None
        self._since = clock()
        self._term = 0

    def enter(self, term: int, lease_s: float) -> None:
        """Take in the term of a call; raise StaleTermError if a newer one is known.

        `lease_s`: the lease of the state in force.
        """
        end = self.ends_at(lease_s or TERM_S)
        if term < self._term and (end is None or self._clock() < end):
            raise StaleTermError(term, self._term)
        if term > self._term:
            self.renew()
        self._term = term

    def renew(self) -> None:
        """Restart the lease."""
        self._since = self._clock()

    def forget_term(self) -> None:
        """Let a client of any term be the next: the lease has ended."""
        self._term = 0

    def ends_at(self, lease_s: float) -> float | None:
        """Return when a lease of this length ends; None for 0, and while a stream is open."""
        if not lease_s or self._stream is not None:
            return None
        return self._since + lease_s

    async def hold(self, pump: Pump) -> None:
        """Pump until the client disconnects; end a stream that was open before.

        Raises StreamEndedError if the stream is ended from outside.
        """
        before, self._stream = self._stream, _ReportStream()
        stream = self._stream
        try:
            if before is not None:
                before.end(
                    StreamEndedError("another client reads the reports now", superseded=True)
                )
                await before.closed.wait()
            await stream.run(pump())
        finally:
            stream.closed.set()
            if self._stream is stream:
                self._stream = None
                self.renew()

    def end_stream(self, message: str) -> None:
        """End the open stream, if any, because the agent shuts down."""
        if self._stream is not None:
            self._stream.end(StreamEndedError(message, superseded=False))


class _ReportStream:
    """One stream of reports, which can be ended from outside."""

    def __init__(self) -> None:
        self._end: asyncio.Future[StreamEndedError] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()

    def end(self, reason: StreamEndedError) -> None:
        if not self._end.done():
            self._end.set_result(reason)

    async def run(self, pump: Coroutine[object, object, None]) -> None:
        """Pump until it fails, the client disconnects (cancellation), or `end` is called."""
        try:
            await first_to_end(self._ended(), pump)
        finally:
            self.closed.set()

    async def _ended(self) -> NoReturn:
        raise await self._end
