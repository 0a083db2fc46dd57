"""The programs that an agent loads at its start, until a probe takes them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import warm_start
from latencyprobe_agent.kernel.runtime.warm_start import WarmStart
from tests.patience import patient

LIKE = Request((), 1)
CACHE = ObjectCache(Path("/nowhere"))


class Prepared:
    """Programs that are loading until `may_load` is set."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_load = threading.Event()
        self.is_closed = threading.Event()
        self.failure: Exception | None = None

    def prepare(self, like: Request, cache: ObjectCache) -> Prepared:
        assert (like, cache) == (LIKE, CACHE)
        self.has_begun.set()
        assert self.may_load.wait(patient(30))
        if self.failure is not None:
            raise self.failure
        return self

    def close(self) -> None:
        self.is_closed.set()

    async def wait_until_closed(self) -> None:
        assert await asyncio.to_thread(self.is_closed.wait, patient(30))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Prepared:
    made = Prepared()
    monkeypatch.setattr(warm_start, "prepare", made.prepare)
    return made


async def test_the_first_taker_owns_the_programs(prepared: Prepared) -> None:
    prepared.may_load.set()
    starting = WarmStart(LIKE, CACHE)
    taken: object = await starting.take()
    assert taken is prepared
    assert await starting.take() is None
    starting.end()
    assert not prepared.is_closed.is_set()


async def test_without_a_taker_the_programs_are_freed_after_a_time(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_start, "HOLD_S", 0.0)
    prepared.may_load.set()
    starting = WarmStart(LIKE, CACHE)
    await prepared.wait_until_closed()
    assert await starting.take() is None


async def test_programs_that_still_load_at_the_end_are_freed_later(prepared: Prepared) -> None:
    starting = WarmStart(LIKE, CACHE)
    assert await asyncio.to_thread(prepared.has_begun.wait, patient(30))
    starting.end()
    assert not prepared.is_closed.is_set()
    prepared.may_load.set()
    await prepared.wait_until_closed()


async def test_programs_for_a_cancelled_taker_are_freed(prepared: Prepared) -> None:
    taking = asyncio.create_task(WarmStart(LIKE, CACHE).take())
    assert await asyncio.to_thread(prepared.has_begun.wait, patient(30))
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    prepared.may_load.set()
    await prepared.wait_until_closed()


async def test_an_empty_cache_prepares_nothing(prepared: Prepared) -> None:
    prepared.failure = LookupError("the cache has no object")
    prepared.may_load.set()
    assert await WarmStart(LIKE, CACHE).take() is None
