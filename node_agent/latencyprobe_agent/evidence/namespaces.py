"""Reaching a network namespace: its files below /proc, and sockets in it.

There are three cases. The agent's own namespace is accessible directly. Another one has its files
below /proc/PID/net of a process in it. A thread enters one without a process (`ip netns add`). That
thread does nothing else and then ends, so that the agent's other threads stay in their namespace.
Nothing here keeps a namespace alive.
"""

from __future__ import annotations

import ctypes
import math
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from latencyprobe.process.kernel_files import read_kernel_file
from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.evidence.asker import Errand

_CLONE_NEWNET = 0x4000_0000
_FILES = ("netstat", "snmp", "snmp6")
_DEVICES = "dev"
_CONNTRACK = "stat/nf_conntrack"
# Some 500 devices. Who may make network namespaces makes any number of devices in them.
MOST_DEVICES_BYTES = 1 << 16
# At most this number of processes are checked for being (still) in a namespace.
_MOST_ASKED = 64
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace: its inode number, and the processes and path that lead to it."""

    inode: int
    pids: tuple[int, ...] = ()
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of the namespace's files; empty without a file (IPv6, conntrack may be missing)."""

    netstat: str
    snmp: str
    snmp6: str
    dev: str
    conntrack: str = ""


class Reader:
    """A reader of namespaces. It remembers the process that it found in each.

    `host`: the node's own, all devices of which are read. Of others these are the first ones.
    """

    def __init__(self, proc_root: Path = Path("/proc"), *, host: int = 0) -> None:
        self._root = str(proc_root)
        self._host = host
        self._own = _inode("/proc/self/ns/net")
        self._found: dict[int, int] = {}

    def read(self, namespace: Namespace) -> Texts | None:
        """Read the files of a namespace; return None if it is not accessible (any more, or now)."""
        try:
            return self._read(namespace)
        except OSError:
            return None

    def _read(self, namespace: Namespace) -> Texts | None:
        most = math.inf if namespace.inode == self._host else MOST_DEVICES_BYTES
        if namespace.inode == self._own:
            return _texts("/proc/self/net", most)
        pid = self._process_in(namespace)
        if pid is not None:
            texts = _texts(f"{self._root}/{pid}/net", most)
            # If it has left or exited since the check, these are another namespace's files.
            return texts if self._is_in(pid, namespace.inode) else None
        if namespace.path is not None and _inode(namespace.path) == namespace.inode:
            return inside(namespace.path, lambda: _texts("/proc/thread-self/net", most))
        return None

    def channel(self, namespace: Namespace) -> socket.socket | None:
        """Open a socket in the namespace; return None if that fails for now.

        Raises PermissionError without CAP_SYS_ADMIN.
        """
        try:
            return self._channel(namespace)
        except PermissionError:
            raise
        except OSError:
            return None

    def _channel(self, namespace: Namespace) -> socket.socket | None:
        if namespace.inode == self._own:
            return _channel()
        pid = self._process_in(namespace)
        path = namespace.path if pid is None else f"{self._root}/{pid}/ns/net"
        if path is None or _inode(path) != namespace.inode:
            return None
        return inside(path, _channel)

    def keep(self, inodes: Iterable[int]) -> None:
        """Forget all other namespaces."""
        kept = set(inodes)
        self._found = {inode: pid for inode, pid in self._found.items() if inode in kept}

    def _process_in(self, namespace: Namespace) -> int | None:
        candidates: list[int] = list(namespace.pids[:_MOST_ASKED])
        if namespace.inode in self._found:
            candidates.insert(0, self._found[namespace.inode])
        for pid in candidates:
            if self._is_in(pid, namespace.inode):
                self._found[namespace.inode] = pid
                return pid
        return None

    def _is_in(self, pid: int, inode: int) -> bool:
        return _inode(f"{self._root}/{pid}/ns/net") == inode


def inside(path: str, act: Callable[[], _T]) -> _T | None:
    """Return the result of `act` inside this network namespace.

    Raises OSError if it cannot be entered, PermissionError without CAP_SYS_ADMIN.
    """

    def visit() -> _T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Moves the calling thread alone, setns(2). os.setns() came with Python 3.12.
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns", path)
        finally:
            os.close(descriptor)
        return act()

    errand = Errand(visit)
    errand.start().join()
    if errand.failure is not None:
        raise errand.failure
    return errand.result


def _channel() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _texts(directory: str, most_devices_bytes: float) -> Texts:
    devices, _, _ = read_file(f"{directory}/{_DEVICES}", most_devices_bytes).rpartition("\n")
    netstat, snmp, snmp6 = (read_file(f"{directory}/{name}") for name in _FILES)
    conntrack = read_file(f"{directory}/{_CONNTRACK}")
    return Texts(netstat, snmp, snmp6, devices, conntrack)


def read_file(path: str, most_bytes: float = math.inf) -> str:
    """Read a file below /proc, `most_bytes` at most; return an empty text if there is none.

    Raises OSError if the error is transient: an empty text would lose the growth until then.
    """
    try:
        return read_kernel_file(path, most_bytes).decode("ascii", "replace")
    except OSError as error:
        if is_transient(error):
            raise
        return ""
