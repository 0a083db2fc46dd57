"""Notices: all that wait are woken, and none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from latencyprobe.process.notices import Notices


async def test_a_notice_wakes_all_that_wait_and_none_that_waits_later() -> None:
    notices = Notices()
    notices.notify()
    waiting = [asyncio.create_task(notices.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    notices.notify()
    notices.notify()
    await asyncio.gather(*waiting)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await notices.wait()


async def test_one_that_gives_up_waiting_leaves_the_others() -> None:
    notices = Notices()
    one, other = (asyncio.create_task(notices.wait()) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait([one])
    notices.notify()

    await other
    assert one.cancelled()
    assert notices._waiters == ()
