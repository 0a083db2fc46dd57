"""Folders for temporary files, which are removed after use.

The working directory is never used, unlike by `tempfile`: other users may write to it. An error
names each directory that was tried, and its reason.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from latencyprobe.process.os_errors import explained

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
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
            made = tempfile.TemporaryDirectory(
                prefix=f"latencyprobe-{purpose}-", dir=directory, ignore_cleanup_errors=True
            )
        except OSError as error:
            failures[directory] = error
            continue
        with made as folder:
            yield Path(folder)
        return
    raise NoTemporaryFolderError(failures)
