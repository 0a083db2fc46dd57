"""Memory whose first use waits: a system call that copies to it keeps what it has locked."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import ioctl

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
# include/uapi/linux/userfaultfd.h
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _MISSING = 0xC020AA00, 1
_ZEROPAGE = 0xC020AA04
_MESSAGE_BYTES = 32


@dataclass(frozen=True, slots=True)
class WaitingPage:
    """A page of memory without content. `wait_for_use` returns once something waits for it."""

    memory: mmap.mmap
    wait_for_use: Callable[[], None]
    give_content: Callable[[], None]


@contextmanager
def waiting_page() -> Iterator[WaitingPage]:
    """Make a page that gets its content, zeroes, when the test says so."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_USERFAULTFD[os.uname().machine], os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    first = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(first)
    del first  # else the mapping cannot be closed
    try:
        ioctl(descriptor, _API, struct.pack("=QQQ", _API_VERSION, 0, 0))
        ioctl(descriptor, _REGISTER, struct.pack("=QQQQ", address, mmap.PAGESIZE, _MISSING, 0))
        yield WaitingPage(
            memory,
            lambda: _consume(os.read(descriptor, _MESSAGE_BYTES)),
            lambda: _consume(
                ioctl(descriptor, _ZEROPAGE, struct.pack("=QQQq", address, mmap.PAGESIZE, 0, 0))
            ),
        )
    finally:
        os.close(descriptor)  # what still waits gets zeroes
        memory.close()


def _consume(_: bytes) -> None:
    """Have no result."""
