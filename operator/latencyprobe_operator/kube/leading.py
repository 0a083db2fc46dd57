"""Requests that only the leader may make.

A request begins, and is waited for, only while the Lease is held. So an operator that was frozen,
and goes on after its Lease, changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from latencyprobe.process.clocks import boot_clock

# Between two readings of the boot clock.
_CHECK_S = 0.5

T = TypeVar("T")


class NotLeadingError(Exception):
    """A write by an operator that does not hold the Lease, or has not renewed it in time."""

    def __init__(self) -> None:
        super().__init__("this operator has not renewed its Lease in time")


async def while_leading(remaining_s: Callable[[], float], request: Callable[[], Awaitable[T]]) -> T:
    """Make a request while the Lease is held. `remaining_s`: the rest of the Lease; 0: not held.

    Raises NotLeadingError, TimeoutError at the end of the Lease, and the errors of the request.
    """
    # Read first: a freeze between these lines then shortens the time that is left.
    now, booted = asyncio.get_running_loop().time(), boot_clock()
    left_s = remaining_s()
    if left_s <= 0:
        raise NotLeadingError
    # A process that was frozen here, and goes on after its Lease, cancels the request before its
    # task takes another step.
    async with asyncio.timeout_at(None if math.isinf(left_s) else now + left_s) as limit:
        watch = asyncio.create_task(_end_at(booted + left_s, limit))
        try:
            return await request()
        finally:
            watch.cancel()


async def _end_at(end: float, limit: asyncio.Timeout) -> None:
    """End this limit soon after a time of the boot clock.

    The loop's own clock stands still while the machine is suspended.
    """
    while boot_clock() < end:  # noqa: ASYNC110 - no event has it
        await asyncio.sleep(_CHECK_S)
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())
