"""Watches: the paths whose changes make targets appear, and their changes.

inotify is not recursive, so each directory has a watch of its own. Directories that were made in it
before that are not reported: the caller polls once more after `follow` has added a watch.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from latencyprobe.process.os_errors import is_gone
from latencyprobe_agent.targets.inotify import (
    IN_CREATE,
    IN_IGNORED,
    IN_Q_OVERFLOW,
    Inotify,
)

log = logging.getLogger(__name__)

_ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances or the limit of open files",
    errno.ENOMEM: "raise the memory limit",
}


@dataclass(frozen=True, slots=True)
class PathChange:
    """A change at a watched path; `name`: the entry of a directory. `is_new`: it was made."""

    path: str
    name: str = ""
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes since the last call. `is_incomplete`: the kernel has dropped some."""

    changes: tuple[PathChange, ...] = ()
    is_incomplete: bool = False


class Watches:
    """The watched paths. Where the kernel refuses a watch, `problem` says so until it works.

    `make`: for tests of refusals.
    """

    def __init__(self, make: Callable[[], Inotify] = Inotify) -> None:
        self._make = make
        self._inotify: Inotify | None = None
        self._numbers: dict[str, int] = {}
        self._paths: dict[int, str] = {}
        self.problem = ""

    def fileno(self) -> int | None:
        """Return the descriptor, which is readable while changes wait; None without a watch."""
        return self._inotify.fileno() if self._inotify is not None else None

    def follow(self, wanted: Mapping[str, int]) -> bool:
        """Watch these paths for these events, and no other; return True if any was added.

        A path that does not exist is ignored.
        """
        for path in self._numbers.keys() - wanted.keys():
            self._end(path)
        missing = [path for path in wanted if path not in self._numbers]
        try:
            added = [path for path in missing if self._begin(path, wanted[path])]
        except OSError as error:
            self._fail(error)
            return False
        self.problem = ""
        return bool(added)

    def take(self) -> Changes:
        """Return the changes since the last call, as many as one read gives."""
        if self._inotify is None:
            return Changes()
        changes: list[PathChange] = []
        is_incomplete = False
        for event in self._inotify.read():
            if event.mask & IN_Q_OVERFLOW:
                is_incomplete = True
                continue
            path = self._paths.get(event.watch)
            if path is None:
                continue
            if event.mask & IN_IGNORED:  # the path is gone, and its watch with it
                self._forget(path)
            changes.append(PathChange(path, event.name, bool(event.mask & IN_CREATE)))
        return Changes(tuple(changes), is_incomplete)

    def close(self) -> None:
        """End all watches. Idempotent."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._numbers, self._paths = {}, {}

    def _begin(self, path: str, mask: int) -> bool:
        if self._inotify is None:
            self._inotify = self._make()
        try:
            number = self._inotify.add(path, mask)
        except OSError as error:
            if is_gone(error):
                return False
            raise
        if number in self._paths:  # the same directory by another path
            self._forget(self._paths[number])
        self._numbers[path], self._paths[number] = number, path
        return True

    def _end(self, path: str) -> None:
        number = self._forget(path)
        if self._inotify is not None and number is not None:
            self._inotify.remove(number)

    def _forget(self, path: str) -> int | None:
        number = self._numbers.pop(path, None)
        if number is not None:
            del self._paths[number]
        return number

    def _fail(self, error: OSError) -> None:
        name, advice = errno.errorcode.get(error.errno or 0, ""), _ADVICE.get(error.errno or 0)
        problem = f"cannot watch for new cgroups by inotify: {error.strerror} ({name})"
        if advice is not None:
            problem = f"{problem}; {advice}"
        if problem != self.problem:
            log.warning("%s; the agent polls instead", problem)
        self.problem = problem
