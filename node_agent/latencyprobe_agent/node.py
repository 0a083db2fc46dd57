"""The facts that the agent reports on its node."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class HostNetnsError(Exception):
    """An unknown host network namespace. The message says why and what to do."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(
            f"cannot read --host-netns {path}: {reason}. In a pod, /proc/1/ns/net needs hostPID, "
            "CAP_SYS_PTRACE and no AppArmor profile that forbids `ptrace (read)`. Otherwise give "
            "another file of the node's network namespace"
        )


def host_netns_inode(path: Path | None) -> int:
    """Return the inode number of the host's network namespace; raise HostNetnsError.

    Without a path, take that of PID 1. Take our own if PID 1's is not readable. In a container that
    acts as a machine, PID 1 may have capabilities that we lack.
    """
    if path is not None:
        return _inode(path)
    try:
        return Path("/proc/1/ns/net").stat().st_ino
    except PermissionError:
        log.info("cannot read /proc/1/ns/net: using the agent's network namespace as the host's")
        return Path("/proc/self/ns/net").stat().st_ino


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError as error:
        raise HostNetnsError(path, error.strerror or str(error)) from error
