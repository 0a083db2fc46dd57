"""Folders for temporary files, which are removed after use.

The working directory is never used, unlike by `tempfile`: other users may write to it. An error
names each directory that was tried, and its reason.

A process that is killed leaves its folders behind. Each folder is locked by its owner as long as it
lives, and the next agent removes those that no process has locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from latencyprobe.process.os_errors import explained

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_SUFFIX = ".tmp"
_NAME = re.compile(r"latencyprobe-[a-z]+-[a-z0-9_]{8}\.tmp")
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_USUAL = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 (each folder in them is private)


class NoTemporaryFolderError(OSError):
    """A folder for temporary files that cannot be made, with the reason for each directory."""

    def __init__(self, failures: Mapping[str, OSError]) -> None:
        last = [*failures.values()][-1]
        reasons = "; ".join(f"{path}: {explained(error)}" for path, error in failures.items())
        super().__init__(last.errno, f"cannot make a folder for temporary files: {reasons}")

    def __str__(self) -> str:
        return self.strerror or ""


def directories() -> tuple[str, ...]:
    """Return the directories for temporary files, the preferred one first; absolute paths."""
    if tempfile.tempdir is not None:
        return (os.path.abspath(tempfile.tempdir),)
    named = (os.environ[name] for name in _VARIABLES if os.environ.get(name))
    existing = (os.path.abspath(path) for path in (*named, *_USUAL) if os.path.isdir(path))
    return tuple(dict.fromkeys(existing)) or (_USUAL[0],)


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Make a folder that only its owner can enter; remove it at the end with all in it.

    Raises NoTemporaryFolderError if no directory takes one, such as on a full disk.
    """
    failures: dict[str, OSError] = {}
    for directory in directories():
        try:
            folder, lock = _make_locked(directory, f"latencyprobe-{purpose}-")
        except OSError as error:
            failures[directory] = error
            continue
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
        return
    raise NoTemporaryFolderError(failures)


def remove_leftovers() -> int:
    """Remove the folders of processes of ours that have ended; return the number of folders.

    A folder of another user, a link, and a folder in use stay.
    """
    return sum(map(_remove_leftovers_in, directories()))


def _remove_leftovers_in(directory: str) -> int:
    try:
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        names = [name for name in os.listdir(parent) if _NAME.fullmatch(name)]
        return sum(_is_removed(parent, name) for name in names)
    except OSError:
        return 0
    finally:
        os.close(parent)


def _is_removed(parent: int, name: str) -> bool:
    """Remove one folder if it is a leftover; its removal needs the lock, as its use does."""
    try:
        folder = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except OSError:
        return False
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
            return False
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(status, os.stat(name, dir_fd=parent, follow_symlinks=False)):
            return False
        shutil.rmtree(name, dir_fd=parent)
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def _make_locked(directory: str, prefix: str) -> tuple[Path, int]:
    """Make a folder; return it with the descriptor that holds its lock."""
    while True:
        folder = tempfile.mkdtemp(_SUFFIX, prefix, directory)
        try:
            lock = _lock(folder)
        except OSError:
            os.rmdir(folder)
            raise
        if lock is not None:
            return Path(folder), lock


def _lock(folder: str) -> int | None:
    """Lock a new folder; None if another process takes it for a leftover, and removes it."""
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
