"""Network namespaces by path, such as `/var/run/netns/blue` or `/proc/4242/ns/net`."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.targets.facts import TargetFacts, failed

_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_CLONE_NEWNET = 0x4000_0000


class NotANetworkNamespaceError(Exception):
    """A path that is not a network namespace. The message says why."""


def inode_of(path: str) -> int:
    """Return the inode number of a network namespace.

    Raises NotANetworkNamespaceError, and OSError if the path cannot be opened.
    """
    # A device or a FIFO is not opened: that alone can have effects.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotANetworkNamespaceError(
            f"{path} is not a network namespace; "
            "give a file such as /var/run/netns/NAME or /proc/PID/ns/net"
        )
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        inode = os.fstat(descriptor).st_ino
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        raise NotANetworkNamespaceError(
            f"{path} is a regular file, not a network namespace; `ip netns` may have left it behind"
        ) from None
    finally:
        os.close(descriptor)
    if kind != _CLONE_NEWNET:
        raise NotANetworkNamespaceError(
            f"{path} is a namespace of another type, not a network namespace"
        )
    return inode


class NetnsTracker:
    """A tracker of the namespace at a path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: TargetFacts | None = None

    def poll(self) -> TargetFacts:
        """Return the current facts of the namespace."""
        try:
            inode = inode_of(self._path)
        except NotANetworkNamespaceError as error:
            return self._lost(str(error))
        except OSError as error:
            if is_transient(error):
                raise
            return self._lost(f"{self._path}: {error.strerror}")
        wide = frozenset({inode})
        self._seen = TargetFacts(TargetState.ATTACHED, netns=wide, netns_wide=wide)
        return self._seen

    def _lost(self, message: str) -> TargetFacts:
        return self._seen.gone(message) if self._seen else failed(message)
