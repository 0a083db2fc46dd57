"""Between two targets: the next object is loaded in a thread, and attached with the next target."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.runtime.preload import Preload
from tests.patience import patient


class Spare:
    """A loaded object."""

    def __init__(self, refusals: list[str]) -> None:
        self._refusals = refusals
        self.is_attached = False
        self.is_closed = False

    def attach(self) -> None:
        if self._refusals:
            raise EngineError(self._refusals.pop())
        self.is_attached = True

    def close(self) -> None:
        self.is_closed = True


class Before:
    """The object that was closed. Its spares are loaded once `may_load` is set."""

    def __init__(self) -> None:
        self.may_load = threading.Event()
        self.failures: list[str] = []
        self.refusals: list[str] = []
        self.spares: list[Spare] = []

    def spare(self) -> Spare:
        if threading.current_thread() is not threading.main_thread():
            assert self.may_load.wait(patient(30))
        if self.failures:
            raise EngineError(self.failures.pop())
        self.spares.append(Spare(self.refusals))
        return self.spares[-1]


@pytest.fixture
def before() -> Iterator[Before]:
    made = Before()
    yield made
    made.may_load.set()


def preload_of(before: Before) -> Preload:
    return Preload(before)  # type: ignore[arg-type]


def attached(preload: Preload) -> Spare:
    found = preload.attached()
    assert isinstance(found, Spare)
    assert found.is_attached
    return found


async def test_the_preloaded_object_is_attached(before: Before) -> None:
    preload = preload_of(before)
    before.may_load.set()
    assert attached(preload) is before.spares[0]
    assert len(before.spares) == 1


async def test_a_target_that_is_early_gets_the_object_that_is_being_loaded(before: Before) -> None:
    preload = preload_of(before)
    threading.Timer(0.05, before.may_load.set).start()
    assert attached(preload) is before.spares[0]
    assert [spare.is_closed for spare in before.spares] == [False]


async def test_an_end_leaves_nothing_loaded(before: Before) -> None:
    before.may_load.set()
    preload = preload_of(before)
    await preload.end()
    await preload.end()
    assert [spare.is_closed for spare in before.spares] == [True]


async def test_an_end_waits_for_a_load_in_progress(before: Before) -> None:
    preload = preload_of(before)
    ending = asyncio.create_task(preload.end())
    await asyncio.sleep(0)
    assert not ending.done()
    before.may_load.set()
    await ending
    assert [spare.is_closed for spare in before.spares] == [True]


async def test_an_end_that_is_cancelled_leaves_nothing_loaded(before: Before) -> None:
    preload = preload_of(before)
    loading = preload._loading
    assert loading is not None
    ending = asyncio.create_task(preload.end())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    closed = threading.Event()
    loading.add_done_callback(lambda _: closed.set())  # after the one that closes
    before.may_load.set()
    assert closed.wait(patient(30))
    assert [spare.is_closed for spare in before.spares] == [True]


async def test_a_failure_to_load_ahead_is_logged_and_the_target_tries_again(
    before: Before, caplog: pytest.LogCaptureFixture
) -> None:
    before.failures = ["no memory"]
    before.may_load.set()
    attached(preload_of(before))
    assert "cannot load programs ahead: no memory; trying again" in caplog.text


async def test_an_end_after_a_failure_to_load_is_no_error(before: Before) -> None:
    before.failures = ["no memory"]
    before.may_load.set()
    await preload_of(before).end()
    assert before.spares == []


async def test_after_a_refused_attachment_the_next_attempt_loads_again(before: Before) -> None:
    before.refusals = ["refused"]
    before.may_load.set()
    preload = preload_of(before)
    with pytest.raises(EngineError, match="refused"):
        preload.attached()
    assert before.spares[0].is_closed
    assert attached(preload) is before.spares[1]
