"""Fixtures of live tests, on this machine and in guests: engines, and pods to measure."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.contract import SlotSpec, SocketMemoryLimits, ThreadLimits
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime import reading_pause
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace, Pod, pods_back_to_back, pods_on_bridge

BEST, TRACEPOINTS = "best", "tracepoints"


class SettledEngine(KernelEngine):
    """An engine that returns only when its programs are on all devices, or on none."""

    async def use(
        self, modules: frozenset[Module], *, tracing: bool = False, udp: bool = True
    ) -> None:
        await super().use(modules, tracing=tracing, udp=udp)
        self._settle()

    def assign(self, slots: Mapping[int, SlotSpec]) -> None:
        super().assign(slots)
        self._settle()

    def _settle(self) -> None:
        loaded = self._object
        if loaded is None or loaded.devices.links is None:
            return
        while loaded.devices.links.is_busy:
            time.sleep(0.001)
        self._hooks.check_devices()


@pytest.fixture
def hooks(request: pytest.FixtureRequest) -> str:
    """The hooks that engines use: the kernel's best, or tracepoints in place of scoped ones."""
    chosen: str = getattr(request, "param", BEST)
    return chosen


@pytest.fixture
async def start_engine(
    hooks: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., KernelEngine]]:
    """Makes engines, and closes them at the end.

    What they return is of the moment of reading, also where that takes long: in a guest.
    """
    monkeypatch.setattr(reading_pause, "LONG_S", math.inf)
    engines: list[KernelEngine] = []
    async with AsyncExitStack() as stack:

        def start(
            *,
            host_netns: int | None = None,
            on_devices: bool = False,
            typed: bool = True,
            without: Iterable[str] = (),
            cache: ObjectCache | None = None,
            socket_memory: SocketMemoryLimits | None = None,
            threads: ThreadLimits | None = None,
        ) -> KernelEngine:
            chosen = (hooks, os.environ.get("LATENCYPROBE_HOOKS"))
            if TRACEPOINTS in chosen:
                without = (*without, *SCOPED_HOOKS)
            inode = host_netns or Path("/proc/self/ns/net").stat().st_ino
            engine = SettledEngine(
                host_netns=inode,
                on_devices=on_devices or "scoped" in chosen,
                cache=cache,
                typed=typed,
                without=without,
                socket_memory=socket_memory,
                threads=threads,
            )
            stack.push_async_callback(engine.close)
            engines.append(engine)
            return engine

        yield start
        if hooks == TRACEPOINTS:
            in_use = {hook for engine in engines for hook in hooks_in(engine.coverage)}
            assert not in_use & set(SCOPED_HOOKS)


def hooks_in(coverage: Iterable[StageCoverage]) -> set[str]:
    """The hooks of all stages and counters."""
    return {hook for each in coverage for hook in each.hook.split(", ")}


@pytest.fixture
def pair() -> Iterator[tuple[Pod, Pod]]:
    """A (client, server) pair of pods with nothing between them."""
    with pods_back_to_back() as (client, server):
        yield client, server


@pytest.fixture
def bridged() -> Iterator[tuple[Namespace, Pod, Pod]]:
    """A host with a bridge, and a (client, server) pair of pods on it."""
    with pods_on_bridge(2) as (host, (client, server)):
        yield host, client, server
