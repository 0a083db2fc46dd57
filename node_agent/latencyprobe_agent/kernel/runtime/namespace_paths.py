"""Paths to network namespaces of which the inode number is known, and the entry into them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain

_CLONE_NEWNET = 0x4000_0000
# Where CNI plugins, container runtimes and `ip netns` keep namespaces.
_NAMED = ("/run/netns", "/run/docker/netns")
# At most this number of processes are checked for one namespace.
_MOST_ASKED = 64


def find_path(inode: int, cgroups: Collection[str], first: str | None = None) -> str | None:
    """Return a path to the namespace; None if no known one leads to it (any more).

    `cgroups`: directories of cgroups whose processes may be in it. `first`: a path that may be it.
    """
    known = (first,) if first is not None else ("/proc/self/ns/net", "/proc/1/ns/net")
    candidates: Iterator[str] = chain(known, _of_processes(cgroups), _named())
    return next((path for path in candidates if _inode(path) == inode), None)


@contextmanager
def inside(path: str, inode: int) -> Iterator[None]:
    """Have the calling thread in a namespace; it is in its own again afterwards.

    Raises OSError if it cannot be entered, PermissionError without CAP_SYS_ADMIN.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(there).st_ino != inode:
                raise FileNotFoundError(2, "another network namespace is there now", path)
            if os.fstat(home).st_ino == inode:
                yield
                return
            _enter(there, path)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home, path)
    finally:
        os.close(home)


def _enter(descriptor: int, path: str) -> None:
    # Moves the calling thread alone, setns(2). os.setns() came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter a network namespace: {os.strerror(code)}", path)


def _of_processes(cgroups: Collection[str]) -> Iterator[str]:
    asked = 0
    for directory in sorted(cgroups):
        try:
            with open(f"{directory}/cgroup.procs", encoding="ascii") as lines:
                pids = lines.read().split()
        except OSError:
            continue
        for pid in pids:
            if asked == _MOST_ASKED:
                return
            asked += 1
            yield f"/proc/{pid}/ns/net"


def _named() -> Iterator[str]:
    for folder in _NAMED:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        yield from (f"{folder}/{name}" for name in names)


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
