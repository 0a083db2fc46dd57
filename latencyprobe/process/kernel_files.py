"""Reading files that the kernel makes while they are read (/proc, cgroupfs)."""

from __future__ import annotations

import os


def read_kernel_file(path: str) -> bytes:
    """Return the whole content of a file; its size is 0 until it is read.

    Two system calls fewer than open(): agents read thousands of them. Raise OSError if the file is
    gone, or if its reader may not see it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)
