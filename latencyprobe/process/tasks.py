"""Tasks that run together: when the wait for them is over, all of them have ended.

A caller that is cancelled ends its tasks and raises CancelledError. A task that must continue after
the wait takes part through `asyncio.wait({task})`, which ends with it and never cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


async def first_to_end(*awaitables: Awaitable[_T]) -> _T:
    """Run them until one ends, cancel the others, and return or raise the outcome of that one.

    If several end at once, the first in order counts.
    """
    async with _running(awaitables) as tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()


async def all_to_end(*awaitables: Awaitable[_T]) -> list[_T]:
    """Run them until all have ended, and return their results in order.

    The first that fails cancels the others, and its exception is raised.
    """
    async with _running(awaitables) as tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [task.result() for task in tasks if task in done]


@contextlib.asynccontextmanager
async def _running(awaitables: Iterable[Awaitable[_T]]) -> AsyncIterator[list[asyncio.Future[_T]]]:
    tasks: list[asyncio.Future[_T]] = [asyncio.ensure_future(each) for each in awaitables]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
