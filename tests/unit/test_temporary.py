"""Folders for temporary files, and directories that take none."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from latencyprobe.local.agent_process import AgentError, private_agent
from latencyprobe.process import temporary
from latencyprobe.process.temporary import (
    NoTemporaryFolderError,
    directories,
    temporary_folder,
)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The only two directories for temporary files."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(temporary, "_USUAL", (str(first), str(second)))
    return first, second


def _refusing(code: int, *refused: Path) -> Callable[..., str]:
    made = tempfile.mkdtemp

    def mkdtemp(suffix: str | None, prefix: str | None, directory: str) -> str:
        if Path(directory) in refused:
            raise OSError(code, os.strerror(code), f"{directory}/{prefix}x")
        return made(suffix, prefix, directory)

    return mkdtemp


def test_a_folder_is_private_and_gone_at_the_end(two: tuple[Path, Path]) -> None:
    with temporary_folder("run") as folder:
        assert folder.parent == two[0]
        assert folder.name.startswith("latencyprobe-run-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(two[0].iterdir()) == []


def test_the_next_directory_serves_where_one_is_full(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", _refusing(errno.ENOSPC, two[0]))
    with temporary_folder("run") as folder:
        assert folder.parent == two[1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device (ENOSPC); the disk is full: free space"),
        (errno.EROFS, "Read-only file system (EROFS); the file system is read-only: mount"),
        (errno.EACCES, "Permission denied (EACCES)"),
    ],
)
def test_each_directory_that_takes_no_folder_is_named_with_its_reason(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", _refusing(code, *two))
    with pytest.raises(NoTemporaryFolderError) as failed, temporary_folder("run"):
        pass
    assert failed.value.errno == code
    assert str(failed.value).count(message) == 2
    for directory in two:
        assert f"{directory}: " in str(failed.value)


def test_the_working_directory_is_never_used(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "mkdtemp", _refusing(errno.ENOSPC, *two))
    with pytest.raises(NoTemporaryFolderError), temporary_folder("run"):
        pass
    monkeypatch.setattr(temporary, "_USUAL", ("/no/such/directory",))
    assert str(tmp_path) not in directories()


def test_the_named_directory_comes_first_as_an_absolute_path(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "second")
    assert directories() == (str(two[1]), str(two[0]))


async def test_a_run_that_finds_no_room_for_its_agent_says_so(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", _refusing(errno.ENOSPC, *two))
    with pytest.raises(AgentError, match=r"cannot start the agent: .* the disk is full"):
        async with private_agent():
            pass
