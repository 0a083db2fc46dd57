"""The C library's heap: pages of a list are decoded there, and leave gaps between what is kept."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

# M_ARENA_MAX of mallopt(3).
_MOST_ARENAS = -8


def share_one_arena() -> None:
    """Have all threads allocate from one heap; to be called before there are any.

    By default, each thread of gRPC gets a heap of its own, with gaps of its own.
    """
    # glibc's alone, as below.
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(_MOST_ARENAS, 1)


def give_back() -> None:
    """Return free memory to the kernel. After a list of 100,000 pods, that is 17 MiB."""
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    # malloc_trim(3) is glibc's; other C libraries give memory back by themselves, or never.
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
