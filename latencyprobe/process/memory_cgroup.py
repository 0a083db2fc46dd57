"""The memory cgroup of this process: its limit, its free memory, and the processes killed in it.

A child of ours that needs more than the limit is killed with SIGKILL, and has no time to say why.
The kernel counts that in `memory.events` (v2) or `memory.oom_control` (v1, 4.13 or newer).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latencyprobe.process.mounts import Mount, is_below, read_mounts

# PAGE_COUNTER_MAX in bytes, rounded: v1 shows it for no limit.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit, and the path of the cgroup that has it, as in /proc/PID/cgroup."""

    group: str
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryRoom:
    """The memory that is free below a limit, with the page cache that the kernel can give back."""

    limit: MemoryLimit
    free_bytes: int


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a hierarchy's version: the counts, the limit, the memory in use.

    `cache`: the rows of memory.stat that sum up the files' pages, those of children included.
    """

    counts: str
    limit: str
    usage: str
    cache: frozenset[str]


_V1 = _Files(
    "memory.oom_control",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    frozenset({"total_active_file", "total_inactive_file"}),
)
_V2 = _Files(
    "memory.events", "memory.max", "memory.current", frozenset({"active_file", "inactive_file"})
)


class MemoryCgroup:
    """A cgroup of the memory controller, and those above it that are visible."""

    def __init__(self, point: str, group: str, files: _Files) -> None:
        self._point = point
        self._group = group
        self._files = files

    @classmethod
    def of_this_process(
        cls, mounts: Iterable[Mount] | None = None, text: str | None = None
    ) -> MemoryCgroup | None:
        """Return our own; None without a memory controller that is visible.

        `mounts` and `text` (/proc/self/cgroup) are read if they are not given.
        """
        try:
            mounts = tuple(read_mounts() if mounts is None else mounts)
            text = os.fsdecode(Path("/proc/self/cgroup").read_bytes()) if text is None else text
        except OSError:
            return None
        lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
        v1 = (path for _, names, path in lines if "memory" in names.split(","))
        for path in v1:
            controllers = (m for m in mounts if m.fstype == "cgroup" and "memory" in m.options)
            return _found(path, controllers, _V1)
        for path in (path for number, _, path in lines if number == "0"):
            return _found(path, (m for m in mounts if m.fstype == "cgroup2"), _V2)
        return None

    def oom_kills(self) -> int | None:
        """Return the number of processes that were killed in it for lack of memory.

        None if the kernel does not count them, or not here.
        """
        try:
            lines = Path(self._point + self._group, self._files.counts).read_text().splitlines()
        except OSError:
            return None
        counts = (line.split() for line in lines)
        return next((int(each[1]) for each in counts if each[:1] == ["oom_kill"]), None)

    def limit(self) -> MemoryLimit | None:
        """Return the smallest limit, of this cgroup or one above it; None without any."""
        return min(self._limits(), key=lambda limit: limit.limit_bytes, default=None)

    def room(self) -> MemoryRoom | None:
        """Return the least room below a limit, of this cgroup or one above it.

        None without a limit, and where the kernel does not show the memory in use.
        """
        rooms = (self._room_below(limit) for limit in self._limits())
        known = (room for room in rooms if room is not None)
        return min(known, key=lambda room: room.free_bytes, default=None)

    def _room_below(self, limit: MemoryLimit) -> MemoryRoom | None:
        folder = Path(self._point + limit.group)
        try:
            used = int((folder / self._files.usage).read_text())
            rows = [row.split() for row in (folder / "memory.stat").read_text().splitlines()]
        except (OSError, ValueError):
            return None
        cache = sum(int(row[1]) for row in rows if row[0] in self._files.cache)
        return MemoryRoom(limit, max(0, limit.limit_bytes - used + cache))

    def _limits(self) -> Iterator[MemoryLimit]:
        group = self._group
        while True:
            try:
                text = Path(self._point + group, self._files.limit).read_text().strip()
            except OSError:
                text = ""
            if text.isdecimal() and int(text) < _NO_LIMIT:
                yield MemoryLimit(group or "/", int(text))
            if not group:
                return
            group = group.rpartition("/")[0]


def _found(path: str, mounts: Iterable[Mount], files: _Files) -> MemoryCgroup | None:
    """Return the cgroup below the first of these mounts that shows it."""
    for mount in mounts:
        if is_below(path, mount.root):
            return MemoryCgroup(
                mount.point, path.removeprefix(mount.root.rstrip("/")).rstrip("/"), files
            )
    return None
