"""Waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

DEADLINE_SECONDS = 10.0


async def until(condition: Callable[[], object], *, what: Callable[[], object]) -> None:
    """Wait for a condition; at the deadline, fail with what was seen last."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_SECONDS} s; last seen: {what()}")
