"""Renewed certificates: who holds a connection of the old ones is told.

A new connection reads the files anyway (ClientTlsFiles). One that is open would go on for as long
as it lives, on a certificate that has expired meanwhile, or of an authority that nobody trusts.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
# The agents get theirs from other kubelets, which look at a Secret about once a minute. Until then
# one may trust no authority but the old one, and an open connection is better than a refused one.
PATIENCE_SECONDS = 120.0
# And a thousand agents are not all connected to at the same moment.
SPREAD_SECONDS = 60.0

Credentials = Callable[[], grpc.ChannelCredentials]
"""Reads the files; the same object for the same contents. Raises OSError."""


class Renewal:
    """Looks at the files now and then, from `start` to `close`."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        look_seconds: float = LOOK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        spread_seconds: float = SPREAD_SECONDS,
    ) -> None:
        self._credentials = credentials
        self._look_seconds = look_seconds
        self._patience_seconds = patience_seconds
        self._spread_seconds = spread_seconds
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch(), name="renewed certificates")

    async def close(self) -> None:
        """Look no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self) -> None:
        """Return some minutes after the files have changed, for each caller at another time."""
        await self._news.wait()
        spread_seconds = random.uniform(0, self._spread_seconds)  # noqa: S311 - no secret
        await asyncio.sleep(self._patience_seconds + spread_seconds)

    async def _watch(self) -> None:
        known = seen = self._read()
        while True:
            await asyncio.sleep(self._look_seconds)
            before, seen = seen, self._read()
            # What was just being written, or could not be read, is looked at once more.
            if seen is None or seen is not before:
                continue
            if known is not None and seen is not known:
                logger.info(
                    "certificates renewed: they serve new connections from now on, and replace "
                    "those of open ones within three minutes"
                )
                self._tell()
            known = seen

    def _read(self) -> grpc.ChannelCredentials | None:
        try:
            return self._credentials()
        except OSError as error:
            logger.debug("certificates cannot be read: %s", error)
            return None

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
