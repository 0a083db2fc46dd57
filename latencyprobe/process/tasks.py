"""Tasks that stand and fall together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def first_to_end(*awaitables: Awaitable[object]) -> None:
    """Run them together until one ends; the others end with it. Raises what that one raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
