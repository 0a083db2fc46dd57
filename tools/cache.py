"""The cache, outside the repository, of files that take long to make or to fetch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_directory() -> Path:
    """Return $LATENCYPROBE_CACHE, or `latencyprobe` in the user's cache."""
    if chosen := os.environ.get("LATENCYPROBE_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "latencyprobe"


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Exclude other processes from the same folder. The kernel drops a dead process's lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
