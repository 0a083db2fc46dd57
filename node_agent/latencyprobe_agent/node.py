"""What the agent says of its node."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def host_netns_inode(path: Path | None) -> int:
    """The inode number of the host's network namespace; raises OSError where `path` can't be read.

    Without a path: PID 1's, or our own where we may not look at that (PID 1 may have capabilities
    that we lack, as in a container that is taken for a machine).
    """
    if path is not None:
        return path.stat().st_ino
    try:
        return Path("/proc/1/ns/net").stat().st_ino
    except PermissionError:
        log.info("/proc/1/ns/net can't be read: taking our own network namespace for the host's")
        return Path("/proc/self/ns/net").stat().st_ino
