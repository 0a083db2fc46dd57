"""A cgroup of the memory controller, of v1 or v2, which is gone after the test."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from latencyprobe.process.mounts import read_mounts
from tests.live.targets import until


@contextlib.contextmanager
def made_memory_cgroup() -> Iterator[Path]:
    """A memory cgroup of our own."""
    directory = _hierarchy() / f"latencyprobe-test-{uuid.uuid4()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        until(lambda: not (directory / "cgroup.procs").read_text(), f"{directory} empty")
        directory.rmdir()


def _hierarchy() -> Path:
    for mount in read_mounts():
        top = Path(mount.point)
        if mount.fstype == "cgroup" and "memory" in mount.options:
            return top
        controllers = top / "cgroup.subtree_control"
        if mount.fstype == "cgroup2" and "memory" in controllers.read_text().split():
            return top
    raise AssertionError("no hierarchy of cgroups on this machine has the memory controller")


def set_limit(group: Path, limit_bytes: int) -> None:
    """Set the limit of a memory cgroup."""
    names = ("memory.max", "memory.limit_in_bytes")
    (file,) = (group / name for name in names if (group / name).exists())
    file.write_text(str(limit_bytes))
