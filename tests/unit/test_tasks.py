"""Tasks that run together: what comes of them, and that none is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import NoReturn

import pytest

from latencyprobe.process.tasks import (
    EssentialTasks,
    TaskFailedError,
    all_to_end,
    first_to_end,
    unless_ended,
)


class Endless:
    """A task that records its start and its end; `release` lets a slow end happen."""

    def __init__(self, *, slow_to_end: bool = False) -> None:
        self.started, self.cancelled, self.release = (
            asyncio.Event(),
            asyncio.Event(),
            asyncio.Event(),
        )
        self.ended = False
        if not slow_to_end:
            self.release.set()

    async def run(self) -> NoReturn:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            await self.release.wait()
            self.ended = True
        raise AssertionError("it waits for ever")


async def answer(value: str, *, after: asyncio.Event | None = None) -> str:
    if after:
        await after.wait()
    return value


async def fail(*, after: asyncio.Event | None = None) -> NoReturn:
    if after:
        await after.wait()
    raise OSError("failed")


async def test_the_result_of_the_first_to_end_is_returned_and_the_others_have_ended() -> None:
    other = Endless()

    assert await first_to_end(other.run(), answer("x", after=other.started)) == "x"
    assert other.ended


async def test_the_exception_of_the_first_to_end_is_raised_and_the_others_have_ended() -> None:
    other = Endless()

    with pytest.raises(OSError, match="failed"):
        await first_to_end(other.run(), fail(after=other.started))
    assert other.ended


async def test_of_those_that_end_at_once_the_first_argument_counts() -> None:
    assert await first_to_end(answer("x"), fail(), answer("y")) == "x"
    with pytest.raises(OSError, match="failed"):
        await first_to_end(fail(), answer("x"))


async def test_all_results_are_returned_in_order() -> None:
    late = asyncio.Event()

    async def early() -> str:
        late.set()
        return "early"

    assert await all_to_end(answer("late", after=late), early()) == ["late", "early"]


async def test_the_first_failure_ends_all() -> None:
    other = Endless()

    with pytest.raises(OSError, match="failed"):
        await all_to_end(answer("x"), other.run(), fail(after=other.started))
    assert other.ended


@pytest.mark.parametrize("together", [first_to_end, all_to_end])
async def test_a_cancelled_caller_is_cancelled_once_its_tasks_have_ended(
    together: Callable[..., Coroutine[None, None, object]],
) -> None:
    one, other = Endless(), Endless()
    caller = asyncio.create_task(together(one.run(), other.run()))
    await other.started.wait()

    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert one.ended
    assert other.ended


async def test_a_caller_that_is_cancelled_while_the_others_end_is_cancelled() -> None:
    slow = Endless(slow_to_end=True)
    caller = asyncio.create_task(first_to_end(slow.run(), answer("x", after=slow.started)))
    await slow.cancelled.wait()

    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_task_that_is_only_waited_for_goes_on() -> None:
    going = Endless()
    task = asyncio.create_task(going.run())
    await going.started.wait()

    await first_to_end(asyncio.wait({task}), answer("x"))

    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


def pending() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


async def test_work_that_ends_first_gives_its_result_and_the_others_are_cancelled() -> None:
    other = pending()

    assert await unless_ended(answer("x"), other) == "x"
    assert other.cancelled()


async def test_another_that_ends_ends_the_work_which_has_ended_then() -> None:
    work, other = Endless(), pending()
    asyncio.get_running_loop().call_soon(other.set_result, "y")

    assert await unless_ended(work.run(), other, pending()) == "y"
    assert work.ended


async def test_the_failure_of_another_is_raised_and_the_task_goes_on() -> None:
    work, other = Endless(), pending()
    asyncio.get_running_loop().call_soon(other.set_exception, OSError("failed"))

    with pytest.raises(OSError, match="failed"):
        await unless_ended(work.run(), other)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)


async def test_the_failure_of_the_work_is_raised_though_another_ends_at_once() -> None:
    other = pending()
    other.set_exception(OSError("another"))

    with pytest.raises(OSError, match="failed"):
        await unless_ended(fail(), other)
    for _ in range(3):
        await asyncio.sleep(0)


async def test_another_that_ends_after_the_work_cancels_nothing() -> None:
    other = pending()

    async def work() -> str:
        other.set_result("y")
        return "x"

    assert await unless_ended(work(), other) == "x"
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_caller_that_is_cancelled_with_another_at_its_end_is_cancelled() -> None:
    work, other = Endless(slow_to_end=True), pending()
    caller = asyncio.create_task(unless_ended(work.run(), other))
    await work.started.wait()
    other.set_result("y")
    await work.cancelled.wait()
    caller.cancel()
    work.release.set()

    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_cancelled_caller_ends_its_work() -> None:
    work, other = Endless(), pending()
    caller = asyncio.create_task(unless_ended(work.run(), other))
    await work.started.wait()
    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended
    assert other.cancelled()


async def test_the_first_failure_of_an_essential_task_is_raised_with_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, other, begin = EssentialTasks(), Endless(), asyncio.Event()
    tasks.spawn(other.run(), "other")
    tasks.spawn(fail(after=begin), "warm-up")
    waiting = asyncio.ensure_future(tasks.failure())
    await other.started.wait()
    assert not waiting.done()
    begin.set()

    with pytest.raises(TaskFailedError, match="the task 'warm-up' has failed: OSError: failed"):
        await waiting
    with pytest.raises(TaskFailedError):
        await tasks.failure()
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert record.exc_info
    assert not other.ended
    await tasks.close()
    assert other.ended


async def test_essential_tasks_that_end_or_are_cancelled_are_no_failure() -> None:
    tasks, other = EssentialTasks(), Endless()
    await tasks.spawn(asyncio.sleep(0), "ends")
    task = tasks.spawn(other.run(), "cancelled")
    await other.started.wait()
    task.cancel()
    await asyncio.wait({task})

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tasks.failure()
