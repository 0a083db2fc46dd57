"""Work on demand: a task that exists only while there is something to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class OnDemand:
    """A runner of `work` on demand, in one task at a time.

    `work` returns once nothing is left to do. It checks that after each wait: so a demand while it
    runs is not lost. Its first failure becomes that of `ended`.
    """

    __slots__ = ("_ended", "_task", "_work")

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, None]], ended: asyncio.Future[None]
    ) -> None:
        self._work = work
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Have the work done, unless it is being done."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(self._take_end)

    async def close(self) -> None:
        """End the work, and wait for its end."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _take_end(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        error = None if task.cancelled() else task.exception()
        if error and not self._ended.done():
            self._ended.set_exception(error)
