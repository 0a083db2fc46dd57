"""Requests to drivers, which may answer slowly.

An ethtool ioctl waits for the kernel's RTNL lock and for the device's firmware. A faulty device may
take a minute. The agent must not block that long, and the kernel has no other interface for these
statistics. So a thread sends the request, and the agent waits for it only briefly.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_PATIENCE_S = 0.05
_T = TypeVar("_T")


class Asker:
    """A thread that sends one request at a time."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """True while an earlier request is pending."""
        return self._thread is not None and self._thread.is_alive()

    def ask(self, question: Callable[[], _T]) -> _T | None:
        """Return the answer; None if it fails, is late, or an earlier request is pending.

        A late answer is dropped. If an earlier request is pending, `question` is not called.
        """
        if self.is_busy:
            return None
        errand = Errand(question)
        try:
            self._thread = errand.start()
        except OSError:
            return None
        self._thread.join(self._patience_s)
        return errand.result


class Errand(Generic[_T]):
    """A call in a thread of its own. `result` is None until it has succeeded.

    `failure` is the error of the operating system that ended it.
    """

    def __init__(self, act: Callable[[], _T]) -> None:
        self._act = act
        self.result: _T | None = None
        self.failure: OSError | None = None

    def start(self) -> threading.Thread:
        """Start the thread. It does not keep the process alive.

        Raises OSError without memory for one more thread, or at the limit of their number.
        """
        thread = threading.Thread(target=self._run, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        return thread

    def _run(self) -> None:
        try:
            self.result = self._act()
        except OSError as error:
            self.failure = error
