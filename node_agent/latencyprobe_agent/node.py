"""What the agent says of its node."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class HostNetnsError(Exception):
    """The host's network namespace can't be told; the message says why, and what may help."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(
            f"cannot read --host-netns {path}: {reason}. In a pod, /proc/1/ns/net needs hostPID, "
            "CAP_SYS_PTRACE and no AppArmor profile that forbids `ptrace (read)`. Otherwise give "
            "another file of the node's network namespace"
        )


def host_netns_inode(path: Path | None) -> int:
    """The inode number of the host's network namespace; HostNetnsError where `path` can't be read.

    Without a path: PID 1's, or our own where we may not look at that (PID 1 may have capabilities
    that we lack, as in a container that is taken for a machine).
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
