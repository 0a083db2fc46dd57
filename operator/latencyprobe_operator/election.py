"""The election: takes the Lease, renews it until it is lost, and releases it.

`kubernetes.aio.leaderelection` is not used: it writes no leaseTransitions and judges by the wall
clock. It cannot release the Lease, and does not know at the moment of a write who holds it.

A leader that cannot reach the API server stays, and writes nothing. Only the API server makes
another leader, and agents refuse the older of two terms. If the Lease is still its own when the
API server answers again, the term goes on, and no figure is lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import NoReturn

from latencyprobe.process.backoff import Backoff
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError
from latencyprobe_operator.kube.lease import ClusterLease, LeaseConflictError, LeaseRecord
from latencyprobe_operator.leadership import Leadership, LeadershipLostError

log = logging.getLogger(__name__)

_FAILURES = (ApiError, *UNAVAILABLE)
_LONGEST_PAUSE_S = 10.0
# The process is about to end, and the kubelet waits for it.
_RELEASE_S = 3.0


class Election:
    """One candidate's part in the election. The calls follow in order: win, keep, release."""

    def __init__(
        self,
        lease: ClusterLease,
        leadership: Leadership,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lease = lease
        self._leadership = leadership
        self._wall_clock = wall_clock
        self._retry_s = leadership.timing.retry_s
        # So that two attempts fit into the renew deadline.
        self._limit_s = leadership.timing.renew_deadline_s / 2
        self._tried = False
        self._problem = ""
        self._seen_holder = ""

    async def win(self) -> None:
        """Return once this candidate leads."""
        leadership, lease = self._leadership, self._lease
        backoff = Backoff(self._retry_s, _LONGEST_PAUSE_S)
        while True:
            pause_s = self._retry_s * random.uniform(0.75, 1)  # noqa: S311 - jitter
            try:
                record = await lease.read(limit_s=self._limit_s)
                leadership.see(record)
                if not leadership.free_in_s():
                    await self._write()
                    log.info("leads by the Lease %s, term %d", lease, leadership.term)
                    return
            except LeaseConflictError:
                log.debug("another candidate was faster")
            except _FAILURES as error:
                self._warn(f"cannot take the Lease {lease}", error)
                pause_s = backoff.next()
            else:
                self._problem = ""
                backoff.reset()
                self._say_standby(record)
                pause_s = min(pause_s, leadership.free_in_s())
            await asyncio.sleep(pause_s)

    async def keep(self) -> NoReturn:
        """Renew the Lease; raise LeadershipLostError when another operator has it."""
        while True:
            try:
                await self._renew()
            except _FAILURES as error:
                problem = f"cannot renew the Lease {self._lease}"
                if not self._leadership.remaining_s():
                    problem += "; no status is written until then"
                self._warn(problem, error)
            else:
                if self._problem:
                    log.warning("renewed the Lease %s", self._lease)
                self._problem = ""
            await asyncio.sleep(self._retry_s * random.uniform(0.75, 1))  # noqa: S311 - jitter

    async def release(self) -> None:
        """Give the Lease up, if this candidate has it, so that another takes it at once."""
        self._leadership.lose()
        if not self._tried:
            return
        self._tried = False
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._release()
        except _FAILURES as error:
            log.warning(
                "cannot release the Lease %s: %s; it ends by itself", self._lease, _text(error)
            )

    async def _renew(self) -> None:
        while True:
            try:
                await self._write()
            except LeaseConflictError:
                record = await self._lease.read(limit_s=self._limit_s)
                if not self._leadership.still_holds(record):
                    self._leadership.lose()
                    raise LeadershipLostError(str(self._lease), record) from None
                # A write of our own whose answer was lost, or a change beside the spec.
                self._leadership.see(record)
            else:
                return

    async def _write(self) -> None:
        sent_at = self._leadership.clock()
        self._tried = True
        proposal = self._leadership.proposal(self._wall_clock())
        record = await self._lease.write(proposal, limit_s=self._limit_s)
        self._leadership.hold(record, sent_at=sent_at)

    async def _release(self) -> None:
        while True:
            record = await self._lease.read(limit_s=_RELEASE_S)
            if record is None or record.holder != self._leadership.identity:
                return
            try:
                await self._lease.write(record.release(self._wall_clock()), limit_s=_RELEASE_S)
            except LeaseConflictError:
                continue
            log.info("released the Lease %s", self._lease)
            return

    def _say_standby(self, record: LeaseRecord | None) -> None:
        holder = record.holder if record else ""
        if holder != self._seen_holder:
            log.info("standby: %s leads by the Lease %s", holder or "no operator", self._lease)
        self._seen_holder = holder

    def _warn(self, problem: str, error: Exception) -> None:
        """Log a failure, unless it is the same as before."""
        text = f"{problem}: {_text(error)}"
        if text != self._problem:
            log.warning("%s", text)
        self._problem = text


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
