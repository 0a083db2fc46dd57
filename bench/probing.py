"""Our programs for a slice of time: attached for targets, or loaded and waiting for one.

The kernel's run-time statistics are off during a slice: the agent has them on for a small part of
the time only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bench.outcome import CannotMeasureError
from bench.programs import links
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import Selector
from latencyprobe_agent.kernel.contract import SlotSpec, SocketFilter
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.plan import SlotKey, spec_of
from latencyprobe_agent.targets.resolver import Resolver

MODULES = frozenset(DEFAULT_MODULES)
# Else each slice reports again which hooks this kernel does not have.
logging.getLogger(KernelEngine.__module__).setLevel(logging.ERROR)


@asynccontextmanager
async def engine_with_cache(
    host_netns: int, objects: Path, *, scoped: bool | None = None
) -> AsyncIterator[KernelEngine]:
    """Make an engine. Without a cache each slice would begin with a compilation.

    `scoped`: with programs for packets on cgroups and devices; None: as the environment has it.
    """
    if scoped is None:
        scoped = os.environ.get("LATENCYPROBE_HOOKS") == "scoped"
    engine = KernelEngine(
        host_netns=host_netns,
        on_devices=scoped,
        cache=ObjectCache(objects),
    )
    try:
        yield engine
    finally:
        await engine.close()


def slots_of_namespaces(namespaces: frozenset[int]) -> Mapping[int, SlotSpec]:
    """Return a slot for all sockets of each network namespace."""
    return {
        slot: SlotSpec(netns_wide=frozenset({inode}), netns=frozenset({inode}))
        for slot, inode in enumerate(sorted(namespaces))
    }


def slots_of(*selectors: Selector) -> Mapping[int, SlotSpec]:
    """Return a slot for each target, with the facts that the agent finds out."""
    resolver = Resolver()
    resolver.track(selectors)
    found = {}
    for slot, selector in enumerate(selectors):
        facts = resolver.facts_of(selector)
        if facts.state is not TargetState.ATTACHED:
            raise CannotMeasureError(f"{selector} is {facts.state}: {facts.message}")
        found[slot] = spec_of(SlotKey(selector, SocketFilter()), facts)
    return found


@asynccontextmanager
async def measuring(
    engine: KernelEngine,
    slots: Mapping[int, SlotSpec],
    *,
    modules: frozenset[Module] = MODULES,
    udp: bool = True,
) -> AsyncIterator[None]:
    """Measure these slots, for the time of the `with` block."""
    engine.assign(slots)
    await engine.use(modules, udp=udp)
    await _settle(engine)
    engine._clock.stop()
    try:
        yield
    finally:
        await engine.use(frozenset())


async def _settle(engine: KernelEngine) -> None:
    """Wait until programs are on all devices, if any are to be."""
    loaded = engine._object
    if loaded is None or loaded.devices.links is None:
        return
    while loaded.devices.links.is_busy:
        await asyncio.sleep(0.01)
    engine._hooks.check_devices()


def let_drivers_rest(engine: KernelEngine) -> None:
    """Have it as after two minutes in which no target's packet got to a driver."""
    assert engine._object is not None
    engine._object.drivers.follow(False)


@asynccontextmanager
async def without_target(engine: KernelEngine) -> AsyncIterator[None]:
    """Have the modules in use, and no target. Raise CannotMeasureError if anything is attached."""
    async with measuring(engine, {}):
        engine.assign({})
        assert engine._preload is not None
        if (loading := engine._preload._loading) is not None:
            await asyncio.wrap_future(loading)
        if attached := links(os.getpid()):
            raise CannotMeasureError(f"{attached} programs are attached, and there is no target")
        yield
