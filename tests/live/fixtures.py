"""Fixtures of live tests, on this machine and in guests: engines, and pods to measure."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.contract import SocketMemoryLimits, ThreadLimits
from latencyprobe_agent.kernel.hooks import SCOPED_HOOKS
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.pods import Namespace, Pod, pods_back_to_back, pods_on_bridge


@pytest.fixture
async def start_engine() -> AsyncIterator[Callable[..., KernelEngine]]:
    """Makes engines, and closes them at the end."""
    async with AsyncExitStack() as stack:

        def start(
            *,
            host_netns: int | None = None,
            typed: bool = True,
            without: Iterable[str] = (),
            cache: ObjectCache | None = None,
            socket_memory: SocketMemoryLimits | None = None,
            threads: ThreadLimits | None = None,
        ) -> KernelEngine:
            if os.environ.get("LATENCYPROBE_HOOKS") == "tracepoints":
                without = (*without, *SCOPED_HOOKS)
            inode = host_netns or Path("/proc/self/ns/net").stat().st_ino
            engine = KernelEngine(
                host_netns=inode,
                cache=cache,
                typed=typed,
                without=without,
                socket_memory=socket_memory,
                threads=threads,
            )
            stack.push_async_callback(engine.close)
            return engine

        yield start


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
