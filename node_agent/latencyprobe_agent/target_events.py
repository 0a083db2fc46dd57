"""The reports of the resolver's watches, for the agent's task that follows the targets."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from latencyprobe_agent.targets.resolver import Resolver


class TargetEvents:
    """Wakes a task when a target may have changed. For use as a context manager."""

    def __init__(self, resolver: Resolver, wake: asyncio.Event) -> None:
        self._resolver = resolver
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listen_on(None)

    def listen(self) -> None:
        """Listen on the descriptor that the resolver has now: it makes one with its first watch."""
        self._listen_on(self._resolver.fileno())

    def _listen_on(self, descriptor: int | None) -> None:
        if descriptor == self._descriptor:
            return
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
        if descriptor is not None:
            self._loop.add_reader(descriptor, self._take)
        self._descriptor = descriptor

    def _take(self) -> None:
        if self._resolver.take_changes():
            self._wake.set()
