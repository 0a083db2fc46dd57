"""Requests that only the leader may make.

A request begins, and is waited for, only while the Lease is held. So an operator that was frozen,
and goes on after its Lease, changes nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

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
    now = asyncio.get_running_loop().time()
    left_s = remaining_s()
    if left_s <= 0:
        raise NotLeadingError
    # A process that was frozen here, and goes on after its Lease, cancels the request before its
    # task takes another step.
    async with asyncio.timeout_at(None if math.isinf(left_s) else now + left_s):
        return await request()
