"""Renewed certificates: open connections are replaced by ones that use them.

A new connection reads the files anyway (ClientTlsFiles). An open connection would go on with a
certificate that has expired since, or with one of a CA that is no longer trusted.
"""

from __future__ import annotations

import asyncio
import logging
import random

import grpc

from latencyprobe.process.tasks import Spawn, spawn
from latencyprobe_operator.agents.credentials import Credentials

log = logging.getLogger(__name__)

POLL_S = 10.0
# The agents get theirs from other kubelets, which poll a Secret about once a minute. Until then
# one may trust no CA but the old one, and an open connection is better than a refused one.
PATIENCE_S = 120.0
# And a thousand agents are not all connected to at the same moment.
SPREAD_S = 60.0


class Renewal:
    """Polls the files from `start` to `close`."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        poll_s: float = POLL_S,
        patience_s: float = PATIENCE_S,
        spread_s: float = SPREAD_S,
    ) -> None:
        self._credentials = credentials
        self._poll_s = poll_s
        self._patience_s = patience_s
        self._spread_s = spread_s
        self._waiters: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, spawn: Spawn = spawn) -> None:
        """Begin to poll, in a task that `spawn` begins."""
        self._task = spawn(self._watch(), "renewed certificates")

    async def close(self) -> None:
        """Stop polling."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wait(self) -> asyncio.Future[None]:
        """Return a future that is done some minutes after the files have changed.

        That is at another time for each caller. A task for each would take 1.5 KiB of each agent.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)
        return waiter

    async def _watch(self) -> None:
        known = seen = self._read()
        while True:
            await asyncio.sleep(self._poll_s)
            before, seen = seen, self._read()
            # Files that are being written, or cannot be read, are read once more.
            if seen is None or seen is not before:
                continue
            if known is not None and seen is not known:
                log.info(
                    "certificates renewed: new connections use them from now on, and open "
                    "connections are replaced within three minutes"
                )
                self._wake_waiters()
            known = seen

    def _read(self) -> grpc.ChannelCredentials | None:
        try:
            return self._credentials()
        except (OSError, ValueError) as error:
            log.debug("cannot read the certificates: %s", error)
            return None

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            spread_s = random.uniform(0, self._spread_s)  # noqa: S311 - no secret
            asyncio.get_running_loop().call_later(self._patience_s + spread_s, _end, waiter)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
