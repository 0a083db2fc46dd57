"""The C library's heap: messages that are decoded there leave gaps between objects that stay."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

# M_ARENA_MAX, M_MMAP_THRESHOLD and M_MMAP_MAX of mallopt(3).
_MOST_ARENAS = -8
_MAPPED_BYTES = -3
_MOST_MAPPED = -4
# gRPC reads into blocks of this size: kBigAlloc in posix_endpoint.cc.
_READ_BLOCK_BYTES = 64 * 1024
# Half of the mappings that a process may have (vm.max_map_count).
_MOST_BLOCKS = 32_768


def share_one_arena() -> None:
    """Have all threads allocate from one heap; to be called before there are any.

    By default, each thread of gRPC gets a heap of its own, with gaps of its own.
    """
    _mallopt()(_MOST_ARENAS, 1)


def map_read_blocks() -> None:
    """Have each large block of memory mapped by itself; to be called before there are any.

    Each channel reads its next messages into the rest of its block, and frees the block with the
    last of them. So half of a block is not in use yet, on average. In a mapping of its own, that
    half takes no memory. In the heap, blocks take the place of others, whose pages are there.
    """
    mallopt = _mallopt()
    mallopt(_MAPPED_BYTES, _READ_BLOCK_BYTES)
    mallopt(_MOST_MAPPED, _MOST_BLOCKS)


def _mallopt() -> Callable[[int, int], object]:
    # glibc's alone, as below.
    return getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)


def give_back() -> None:
    """Return free memory to the kernel. After a list of 100,000 pods, that is 17 MiB."""
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    # malloc_trim(3) is glibc's; other C libraries give memory back by themselves, or never.
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
