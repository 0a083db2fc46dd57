"""Turns of the event loop: a few steps of some hundred microseconds in each.

After a start, or a pause of the process, thousands of agents are ready at once. Other tasks then
have their turns in between.
"""

from __future__ import annotations

import asyncio


class Turns:
    """A limit for the steps of one turn of the event loop."""

    def __init__(self, most: int) -> None:
        """Allow this number of steps a turn."""
        self._free = asyncio.Semaphore(most)
        self.places = asyncio.Semaphore(most)
        """Places for work that takes several steps, and much memory from the first to the last."""

    async def take(self) -> None:
        """Return in a turn that has room for a step, in the order of the calls."""
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)
