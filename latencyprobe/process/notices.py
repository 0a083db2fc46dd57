"""Notices to waiting tasks, at little cost while none waits.

An `asyncio.Event` keeps 760 bytes for its waiters. An operator has thousands of objects that a task
waits for now and then.
"""

from __future__ import annotations

import asyncio


class Notices:
    """Wakes the tasks that wait at the time of a notice. A notice before that has no effect."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    async def wait(self) -> None:
        """Return after the next notice."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(each for each in self._waiters if each is not waiter)

    def notify(self) -> None:
        """Wake all tasks that wait now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
