"""The mounts of this process, from /proc/self/mountinfo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo: the part `root` of a file system, mounted at `point`."""

    point: str
    root: str
    fstype: str
    options: frozenset[str]

    @property
    def is_whole(self) -> bool:
        """True if the whole hierarchy is visible.

        Inside a cgroup namespace, `/..` stands for each level above it.
        """
        return not self.root.strip("/.")


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Parse the mounts, in the file's order: a later one covers an earlier one at its place."""
    return tuple(_parse_mount(line) for line in text.split("\n") if " - " in line)


def _parse_mount(line: str) -> Mount:
    before, after = line.split(" - ", 1)
    root, point = before.split(" ")[3:5]
    fstype, _, options = after.split(" ", 2)
    return Mount(_unescape(point), _unescape(root), fstype, frozenset(options.split(",")))


def _unescape(text: str) -> str:
    """Decode space, tab, newline and backslash from octal (seq_path(), fs/seq_file.c)."""
    for octal, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace("\\" + octal, character)
    return text


def read_mounts() -> tuple[Mount, ...]:
    """Read the mounts that are visible to this process."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def is_below(path: str, directory: str) -> bool:
    """Return True if the path is the directory, or in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
