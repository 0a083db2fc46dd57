"""A Lease in memory, and candidates that reach it late, twice, or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

from latencyprobe_operator.election import Election
from latencyprobe_operator.kube.lease import FREE, ClusterLease, LeaseConflictError, LeaseRecord
from latencyprobe_operator.leadership import Leadership, LeaseTiming

_T = TypeVar("_T")


# 2026-01-02T03:04:05.5Z
NOW = 1767323045.5


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def taken_by(holder: str, record: LeaseRecord = FREE) -> LeaseRecord:
    """The record as this holder takes it."""
    return record.acquire(holder, 15, record.transitions + 1, now=NOW)


@dataclass
class SharedLease:
    """The API server's Lease."""

    record: LeaseRecord | None = None
    version: int = 0
    holders: list[tuple[str, int]] = field(default_factory=list)
    """(holder, term) of each change of holder."""

    def read(self) -> LeaseRecord | None:
        return self.record

    def write(self, record: LeaseRecord) -> LeaseRecord:
        known = record.body.get("metadata", {}).get("resourceVersion")
        if known != (str(self.version) if self.record else None):
            raise LeaseConflictError("the object has been modified")
        before = self.record
        self.version += 1
        body = {"metadata": {"resourceVersion": str(self.version)}}
        self.record = dataclasses.replace(record, body=body)
        if record.holder and (before is None or before.holder != record.holder):
            self.holders.append((record.holder, record.transitions + 1))
        return self.record

    def touch(self) -> None:
        """Change the object beside its spec."""
        assert self.record
        self.version += 1
        body = {"metadata": {"resourceVersion": str(self.version)}}
        self.record = dataclasses.replace(self.record, body=body)


@dataclass(frozen=True)
class Trip:
    """One request: the times to the server and back, and what becomes of it."""

    there_s: float = 0.001
    back_s: float = 0.001
    answered: bool = True
    arrives: bool = True
    frozen: bool = False
    """The process is frozen: no timeout of its own ends the wait."""


class Path:
    """One candidate's way to the Lease."""

    def __init__(self, lease: SharedLease, trips: Iterator[Trip]) -> None:
        self._lease = lease
        self._trips = trips
        self.away: Exception | None = None

    def __str__(self) -> str:
        return "latencyprobe-system/latencyprobe-operator"

    async def read(self, *, limit_s: float) -> LeaseRecord | None:
        return await self._send(self._lease.read, limit_s)

    async def write(self, record: LeaseRecord, *, limit_s: float) -> LeaseRecord:
        return await self._send(lambda: self._lease.write(record), limit_s)

    async def _send(self, act: Callable[[], _T], limit_s: float) -> _T:
        if self.away:
            raise self.away
        trip = next(self._trips)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def settle(set_outcome: Callable[[], None]) -> None:
            def arrive() -> None:
                if not answer.done():
                    set_outcome()

            if trip.answered:
                loop.call_later(trip.back_s, arrive)

        def serve() -> None:
            # Also for a client that has given up.
            try:
                result = act()
            except LeaseConflictError as error:
                failure = error
                settle(lambda: answer.set_exception(failure))
            else:
                settle(lambda: answer.set_result(result))

        if trip.arrives:
            loop.call_later(trip.there_s, serve)
        frozen = trip.frozen and trip.arrives and trip.answered
        async with asyncio.timeout(None if frozen else limit_s):
            return await answer


class Candidate:
    """One operator in the election. Its clock begins anywhere, and may run fast or slow."""

    def __init__(
        self,
        name: str,
        lease: SharedLease,
        trips: Iterator[Trip],
        *,
        timing: LeaseTiming,
        offset_s: float = 0.0,
        rate: float = 1.0,
        wall_s: float = NOW,
    ) -> None:
        self.name = name
        self.offset_s, self.rate, self.wall_s = offset_s, rate, wall_s
        self.path = Path(lease, trips)
        self.leadership = Leadership(name, timing, self._clock)
        self.election = Election(
            cast(ClusterLease, self.path),
            self.leadership,
            wall_clock=lambda: asyncio.get_running_loop().time() + self.wall_s,
        )

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() * self.rate + self.offset_s

    @property
    def leads(self) -> bool:
        """It would write a status now."""
        return self.leadership.remaining_s() > 0

    async def run(self) -> None:
        """Take part until the Lease is lost."""
        await self.election.win()
        await self.election.keep()
