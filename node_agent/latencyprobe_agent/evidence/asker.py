"""Questions to drivers, which may take their time over the answer.

An ethtool ioctl waits for the kernel's RTNL lock and for the device's firmware; a device in
trouble may take a minute. The agent must not stand still for so long, and there is no other way to
ask. So a thread asks, and is waited for a moment only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_PATIENCE_S = 0.05
_T = TypeVar("_T")


class Asker:
    """Asks one question at a time."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the answer to a question before is still awaited."""
        return self._thread is not None and self._thread.is_alive()

    def ask(self, question: Callable[[], _T]) -> _T | None:
        """The answer; None where it fails, does not come soon, or one before is still awaited.

        An answer that comes late is dropped. A question that is not even asked is not called.
        """
        if self.is_busy:
            return None
        errand = Errand(question)
        self._thread = errand.start()
        self._thread.join(self._patience_s)
        return errand.result


class Errand(Generic[_T]):
    """Something that a thread of its own does; `result` is None until it has succeeded."""

    def __init__(self, act: Callable[[], _T]) -> None:
        self._act = act
        self.result: _T | None = None

    def start(self) -> threading.Thread:
        """Set out. The thread does not keep the process from ending."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self.result = self._act()
        except OSError:
            return
