"""Reading files that the kernel makes while they are read (/proc, cgroupfs)."""

from __future__ import annotations

import math
import os

_CHUNK_BYTES = 1 << 16


def read_kernel_file(path: str, most_bytes: float = math.inf) -> bytes:
    """Return the content of a file, `most_bytes` at most; its size is 0 until it is read.

    Two system calls fewer than open(): agents read thousands of them. Raise OSError if the file is
    gone, or if its reader may not see it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        left = most_bytes
        while chunk := os.read(descriptor, int(min(left, _CHUNK_BYTES))):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)
