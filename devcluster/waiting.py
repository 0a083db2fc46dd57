"""Waiting for a condition with a deadline, and saying what was last seen if it did not come."""

import time
from collections.abc import Callable

from .errors import ClusterError

# None when the condition holds; otherwise what is still missing, for a person to read.
Unmet = Callable[[], str | None]


class NotInTimeError(ClusterError):
    """A condition did not hold within its time."""

    def __init__(self, what: str, seconds: float, last_state: str) -> None:
        super().__init__(f"{what}: not within {seconds:g} s. Last state: {last_state}")
        self.what = what
        self.seconds = seconds
        self.last_state = last_state


def wait_until(what: str, unmet: Unmet, *, seconds: float, interval_s: float = 0.2) -> None:
    """Poll until nothing is missing. An exception that `unmet` raises ends the wait."""
    deadline = time.monotonic() + seconds
    while True:
        is_last = time.monotonic() >= deadline  # before it: a question may take long
        if (last_state := unmet()) is None:
            return
        if is_last:
            raise NotInTimeError(what, seconds, last_state)
        time.sleep(interval_s)
