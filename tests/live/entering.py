"""A network namespace that a thread enters for a while."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """This thread is in the namespace of this path; the sockets that it makes stay there."""
    with open("/proc/thread-self/ns/net") as home, namespace.open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):  # os.setns() comes with Python 3.12
        raise OSError(ctypes.get_errno(), "setns")
