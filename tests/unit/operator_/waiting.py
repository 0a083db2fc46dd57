"""Waiting for a condition with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.patience import patient

# Ten times what such a wait takes on a busy machine.
_DEADLINE_S = 30.0


async def until(condition: Callable[[], object], *, what: Callable[[], object]) -> None:
    """Wait for a condition; at the deadline, fail with what was seen last."""
    deadline_s = patient(_DEADLINE_S)
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not within {deadline_s:g} s; last seen: {what()}")
