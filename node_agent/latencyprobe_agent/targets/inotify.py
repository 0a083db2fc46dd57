"""inotify, by the C library: the kernel's events on directories and files, without waiting.

Linux has no other interface that reports a new cgroup at once: cgroups are made by mkdir(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_HEADER = struct.Struct("=iIII")  # struct inotify_event
# A few hundred events; the rest waits for the next call.
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class InotifyEvent:
    """An event on the object of a watch; `name`: the entry of a directory, empty for a file."""

    watch: int
    mask: int
    name: str


class Inotify:
    """An inotify instance of the kernel. It is closed with its owner at the latest."""

    def __init__(self) -> None:
        """Raise OSError if this user has too many instances or files."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _last_error("inotify_init1")
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor, which is readable while events wait."""
        return self._descriptor

    def add(self, path: str, mask: int) -> int:
        """Watch a path; return the number of the watch. Raises OSError."""
        watch: int = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)
        if watch < 0:
            raise _last_error(path)
        return watch

    def remove(self, watch: int) -> None:
        """End a watch; one whose object is gone has ended already."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[InotifyEvent]:
        """Return the next events; none if none waits."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        return list(_events(data))

    def close(self) -> None:
        """Close it. Idempotent."""
        self._close()


def _events(data: bytes) -> Iterator[InotifyEvent]:
    position = 0
    while position < len(data):
        watch, mask, _, length = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        name = data[position : position + length].rstrip(b"\0")
        position += length
        yield InotifyEvent(watch, mask, os.fsdecode(name))


def _last_error(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
