"""Tasks that run together: when the wait for them is over, all of them have ended.

A caller that is cancelled ends its tasks and raises CancelledError. A task that must continue after
the wait takes part through `asyncio.wait({task})`, which ends with it and never cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""As `spawn`: begins a task, by its work and its name."""


class TaskFailedError(Exception):
    """A failed background task, without which its process does only a part of its work."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name = name
        super().__init__(f"the task {name!r} has failed: {type(error).__name__}: {error}")


def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Begin a task that its owner watches, or that may fail."""
    return asyncio.create_task(work, name=name)


async def repeat(step: Callable[[], None], *, every_s: float, name: str) -> NoReturn:
    """Take a step again and again. A failure is logged and ends nothing: for work beside the main.

    The first step is taken at once.
    """
    has_failed = False
    while True:
        try:
            step()
        except Exception:
            # Once for failures in a row.
            if not has_failed:
                log.exception("%s: unexpected error; tried again each %g s", name, every_s)
            has_failed = True
        else:
            has_failed = False
        await asyncio.sleep(every_s)


class EssentialTasks:
    """The background tasks without which a process would do only a part of its work.

    The process waits for `failure`, and ends with it: then its supervisor starts it again.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: TaskFailedError | None = None

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Begin a task. Others may cancel it, too."""
        task = spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._take_end)
        return task

    async def failure(self) -> NoReturn:
        """Wait for the first failure of a task, and raise it as a TaskFailedError."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error

    async def close(self) -> None:
        """End the tasks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        failure = TaskFailedError(task.get_name(), error)
        log.critical("%s", failure, exc_info=error)
        if self._error is None:
            self._error = failure
            self._failed.set()


async def first_to_end(*awaitables: Awaitable[_T]) -> _T:
    """Run them until one ends, cancel the others, and return or raise the outcome of that one.

    If several end at once, the first in order counts.
    """
    async with _running(awaitables) as tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()


async def unless_ended(work: Awaitable[_T], *others: asyncio.Future[_T]) -> _T:
    """Await the work in the caller's own task, until it or one of the others ends.

    As `first_to_end`, for thousands of callers: a future costs 100 bytes, and a task 1.5 KiB. The
    others are cancelled at the end, and not waited for.
    """
    interruption = _Interruption(others)
    try:
        return await work
    except asyncio.CancelledError:
        if not interruption.is_the_only_one:
            raise
    finally:
        interruption.close()
    return interruption.result()


class _Interruption(Generic[_T]):
    """A cancellation of the current task once one of these futures ends, as asyncio.timeout()'s."""

    __slots__ = ("_cancelled_before", "_closed", "_first", "_others", "_task")

    def __init__(self, others: Sequence[asyncio.Future[_T]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._others = others
        self._first: asyncio.Future[_T] | None = None
        self._closed = False
        for other in others:
            other.add_done_callback(self._interrupt)

    def _interrupt(self, other: asyncio.Future[_T]) -> None:
        if self._first is None and not self._closed:
            self._first = other
            self._task.cancel()

    @property
    def is_the_only_one(self) -> bool:
        """Return whether nothing else has cancelled the task."""
        expected = self._cancelled_before + 1
        return self._first is not None and self._task.cancelling() == expected

    def close(self) -> None:
        """Take the cancellation back, and end the others."""
        self._closed = True
        if self._first is not None:
            self._task.uncancel()
        for other in self._others:
            other.remove_done_callback(self._interrupt)
            other.cancel()
            if not other.cancelled() and other.done():
                other.exception()  # it counts as seen

    def result(self) -> _T:
        """Return or raise the outcome of the first that has ended."""
        assert self._first is not None
        return self._first.result()


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
