"""Turns: a lock that namespaces get one after the other.

The tasks of one namespace get it in the order in which they asked. So a namespace with many probes
delays the others by one step each, not by all of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class NamespaceTurns:
    """A lock for steps that would block the event loop together."""

    def __init__(self) -> None:
        # The namespace that is first has the next turn.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._is_taken = False

    @asynccontextmanager
    async def of(self, namespace: str) -> AsyncIterator[None]:
        """Hold the lock in a turn of this namespace."""
        await self._take(namespace)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, namespace: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn had come
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            namespace, own = next(iter(self._waiting.items()))
            while own and own[0].done():  # cancelled
                own.popleft()
            del self._waiting[namespace]
            if not own:
                continue
            turn = own.popleft()
            if own:
                self._waiting[namespace] = own
            turn.set_result(None)
            return
        self._is_taken = False
