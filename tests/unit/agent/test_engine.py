"""The order of an engine's calls to its parts, which are noted here in the place of a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import Future
from unittest.mock import AsyncMock, Mock

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import EngineError, SlotSpec
from latencyprobe_agent.kernel.runtime import engine as engine_module
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.kernel.runtime.target_hooks import TargetHooks

RX = frozenset({Module.RX})
NOTHING_IN_USE: frozenset[Module] = frozenset()
TARGETS = {0: SlotSpec()}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The parts of an engine, and the calls to all of them in their order."""
    made = Mock()
    made.hooks.coverage = ()
    made.loaded.memories.node_statistics = made.loaded.memories.pending = None
    made.loaded.memories.ring = made.loaded.devices.detaching = None
    made.loaded.memories.take.return_value = {}
    made.builder.build = AsyncMock(return_value=made.loaded)
    made.preload.end = AsyncMock()
    monkeypatch.setattr(engine_module, "Preload", lambda _: made.preload)
    monkeypatch.setattr(engine_module, "Builder", lambda **_: made.builder)
    monkeypatch.setattr(engine_module, "TargetHooks", lambda **_: made.hooks)
    monkeypatch.setattr(engine_module, "TargetBounds", lambda *_: made.bounds)
    monkeypatch.setattr(engine_module, "Sampler", lambda *_: made.sampler)
    return made


@pytest.fixture
def engine(parts: Mock) -> KernelEngine:
    del parts  # in its place
    return KernelEngine(host_netns=1)


def order_of(parts: Mock, names: Collection[str]) -> list[str]:
    """Return these calls in the order in which they were made."""
    return [call[0] for call in parts.mock_calls if call[0] in names]


async def test_the_cost_is_sampled_once_stopped_modules_are_detached(
    engine: KernelEngine, parts: Mock
) -> None:
    expected = [
        "sampler.follow",
        "hooks.follow",
        "loaded.halves.begin",
        "loaded.drivers.begin",
        "sampler.begin",
        "hooks.write_targets",
    ]
    await engine.use(RX)
    assert order_of(parts, expected) == expected


async def test_a_change_that_fails_frees_the_object_that_was_loaded_ahead(
    engine: KernelEngine, parts: Mock
) -> None:
    await engine.use(RX)
    engine.assign({})
    parts.hooks.follow.side_effect = EngineError("refused")
    with pytest.raises(EngineError, match="refused"):
        await engine.use(frozenset({Module.TCP}))
    parts.preload.end.assert_awaited_once_with()


async def test_a_cancelled_change_frees_what_was_loaded_ahead_and_devices_are_still_detached(
    engine: KernelEngine, parts: Mock
) -> None:
    parts.loaded.devices.detaching = detaching = Future[None]()
    await engine.use(RX)
    engine.assign({})
    changing = asyncio.create_task(engine.use(NOTHING_IN_USE))
    await asyncio.sleep(0)
    parts.preload.end.assert_not_awaited()
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert not detaching.cancelled()
    parts.preload.end.assert_awaited_once_with()


async def test_targets_are_refused_while_no_hook_would_see_them(
    parts: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "TargetHooks", TargetHooks)
    engine = KernelEngine(host_netns=1)
    parts.sampler.follow.side_effect = EngineError("no memory")
    with pytest.raises(EngineError, match="no memory"):
        await engine.use(RX)
    with pytest.raises(EngineError, match="cannot measure targets"):
        engine.assign(TARGETS)
