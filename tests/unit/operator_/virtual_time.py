"""An event loop whose clock leaps to the next timer: what waits an hour is tested in no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class _LeapingSelector(selectors.BaseSelector):
    """Never waits: tells how long it would have."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.leapt_seconds = 0.0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits for something that no timer brings about")
        if not ready and timeout:
            # A timer is due when the clock has passed it, not when it shows its very moment.
            self.leapt_seconds += timeout + 1e-6
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For tests without any I/O."""

    def __init__(self) -> None:
        self._leaping = _LeapingSelector()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Seconds that the timers have taken."""
        return self._leaping.leapt_seconds
