"""Folders for temporary files, and directories that take none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latencyprobe.local.agent_process import AgentError, private_agent
from latencyprobe.process import temporary
from latencyprobe.process.temporary import (
    NoTemporaryFolderError,
    directories,
    remove_leftovers,
    temporary_folder,
)
from tests.patience import patient


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


LIVES = """
from latencyprobe.process.temporary import temporary_folder
with temporary_folder("run") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    input()
"""
# Each makes a folder and removes the leftovers of the others, time and again.
BUSY = """
from latencyprobe.process.temporary import remove_leftovers, temporary_folder
for _ in range(150):
    with temporary_folder("build") as folder:
        (folder / "file").touch()
        remove_leftovers()
        (folder / "file").unlink()
"""
LEFT = "latencyprobe-run-abcdefgh.tmp"


def _start(code: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def _in_use(directory: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a folder of its own; killed at the end."""
    with _start(LIVES, directory) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def _left_behind(directory: Path, name: str = LEFT) -> Path:
    folder = directory / name
    folder.mkdir(mode=0o700)
    (folder / "include").mkdir()
    (folder / "include/types.h").touch()
    return folder


def test_a_killed_process_leaves_a_folder_that_the_next_one_removes(
    two: tuple[Path, Path],
) -> None:
    with _in_use(two[0]) as (process, folder):
        assert remove_leftovers() == 0
        assert (folder / "file").exists()
        process.kill()
        process.wait()
        assert folder.exists()
        assert remove_leftovers() == 1
        assert not folder.exists()


def test_every_directory_is_searched(two: tuple[Path, Path]) -> None:
    left = [_left_behind(directory) for directory in two]
    assert remove_leftovers() == 2
    assert not any(folder.exists() for folder in left)


def test_our_own_folder_in_use_is_no_leftover(two: tuple[Path, Path]) -> None:
    with temporary_folder("run") as folder:
        assert remove_leftovers() == 0
        assert folder.exists()
    assert not any(two[0].iterdir())


def test_a_planted_link_is_not_followed(two: tuple[Path, Path]) -> None:
    precious = _left_behind(two[1], "precious")
    (two[0] / LEFT).symlink_to(precious)
    inside = _left_behind(two[0], "latencyprobe-build-abcdefgh.tmp")
    (inside / "link").symlink_to(precious)
    assert remove_leftovers() == 1
    assert (precious / "include/types.h").exists()
    assert (two[0] / LEFT).is_symlink()


def test_a_folder_of_another_user_stays(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _left_behind(two[0])
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert remove_leftovers() == 0
    assert (folder / "include/types.h").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")
def test_root_leaves_the_folder_of_another_user_alone(two: tuple[Path, Path]) -> None:
    folder = _left_behind(two[0])
    os.chown(folder, 65534, 65534)
    assert remove_leftovers() == 0
    assert (folder / "include/types.h").exists()


@pytest.mark.parametrize(
    "name",
    [
        "latencyprobe-run-20261128",
        "latencyprobe-results",
        "latencyprobe-run-abcdefgh.tmp.old",
        "latencyprobe-run-abc.tmp",
        "systemd-private-abcdefgh.tmp",
    ],
)
def test_a_folder_with_another_name_is_left_alone(two: tuple[Path, Path], name: str) -> None:
    folder = _left_behind(two[0], name)
    assert remove_leftovers() == 0
    assert folder.exists()


def test_a_folder_that_others_may_enter_was_not_made_by_us(two: tuple[Path, Path]) -> None:
    folder = _left_behind(two[0])
    folder.chmod(0o755)
    assert remove_leftovers() == 0
    assert folder.exists()


def test_processes_that_start_at_once_leave_each_others_folders_alone(tmp_path: Path) -> None:
    processes = [_start(BUSY, tmp_path) for _ in range(4)]
    try:
        errors = [process.communicate(timeout=patient(120))[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert errors == [""] * len(processes)
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_taken_for_a_leftover_while_it_is_made_is_made_again(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tempfile.mkdtemp
    taken: list[int] = []

    def mkdtemp(*arguments: str) -> str:
        folder = made(*arguments)
        if not taken:
            taken.append(remove_leftovers())
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with temporary_folder("run") as folder:
        assert taken == [1]
        assert remove_leftovers() == 0
        assert folder.exists()
