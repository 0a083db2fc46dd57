"""The folder of objects: what may be wrong with it, or with a file, is found and logged."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from latencyprobe_agent import cli
from latencyprobe_agent.kernel.load import cache as caching
from latencyprobe_agent.kernel.load.cache import (
    KEPT_OBJECTS,
    CachedObject,
    CacheFolder,
    ObjectCache,
)
from latencyprobe_agent.main import Settings

KEY, OTHER_KEY = "a" * 64, "b" * 64
CACHED = CachedObject(b"instructions and maps", {"send": "tp_btf/tcp_sendmsg_locked"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "objects"


def write(path: Path, key: str = KEY, cached: CachedObject = CACHED) -> None:
    with ObjectCache(path).opened() as folder:
        assert folder is not None
        folder.write(key, cached)


def read(path: Path, key: str = KEY) -> CachedObject | None:
    with ObjectCache(path).opened() as folder:
        return folder.read(key) if folder is not None else None


def the_line(caplog: pytest.LogCaptureFixture) -> str:
    """The only line of the log."""
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    return record.message


def object_of(path: Path, key: str = KEY) -> Path:
    return path / f"{key}.object"


def test_a_written_object_is_read_and_only_its_owner_can_reach_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(path) is None
    write(path)
    assert read(path) == CACHED
    assert read(path, OTHER_KEY) is None
    assert path.stat().st_mode & 0o7777 == 0o700
    assert [file.name for file in path.iterdir()] == [object_of(path).name]
    assert object_of(path).stat().st_mode & 0o7777 == 0o600
    assert not caplog.records


def test_a_dropped_object_is_gone(path: Path) -> None:
    write(path)
    with ObjectCache(path).opened() as folder:
        assert folder is not None
        folder.drop(KEY)
        folder.drop(KEY)
    assert read(path) is None


# Files


@pytest.mark.parametrize("length", [0, 1, 47, 48, 60, -1])
def test_a_truncated_object_is_not_used(
    path: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    write(path)
    whole = object_of(path).read_bytes()
    object_of(path).write_bytes(whole[:length])
    assert read(path) is None
    assert str(object_of(path)) in the_line(caplog)
    assert "compiling it again" in the_line(caplog)


def test_any_changed_byte_is_found(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path)
    whole = object_of(path).read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        object_of(path).write_bytes(changed)
        assert read(path) is None, place
    assert len(caplog.records) == len(whole)


def test_an_object_under_another_key_is_for_another_kernel(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, OTHER_KEY)
    object_of(path, OTHER_KEY).rename(object_of(path))
    assert read(path) is None
    assert "it is for another kernel" in the_line(caplog)


def test_an_object_of_another_version_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(caching, "_VERSION", 2)
        write(path)
    assert read(path) is None
    assert "it has another form" in the_line(caplog)


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o640, 0o604])
def test_an_object_that_others_can_open_is_not_used(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    write(path)
    object_of(path).chmod(mode)
    assert read(path) is None
    assert f"others have access to it (mode {mode:04o})" in the_line(caplog)


def test_an_object_of_another_user_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(path)
    with ObjectCache(path).opened() as folder:
        assert folder is not None
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        assert folder.read(KEY) is None
    assert f"it belongs to user {uid}, not to {uid + 1}" in the_line(caplog)


def test_a_link_is_not_followed(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path)
    object_of(path).rename(tmp_path / "elsewhere")
    object_of(path).symlink_to(tmp_path / "elsewhere")
    assert read(path) is None
    assert "(ELOOP)" in the_line(caplog)


def test_a_pipe_is_not_waited_for(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(0o700)
    os.mkfifo(object_of(path), 0o600)
    assert read(path) is None
    assert "it is no regular file" in the_line(caplog)


def test_a_file_that_is_too_large_is_not_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path)
    os.truncate(object_of(path), 1 << 40)
    assert read(path) is None
    assert "it has more than" in the_line(caplog)


def test_a_file_that_is_not_used_is_replaced(path: Path) -> None:
    write(path)
    object_of(path).write_bytes(b"")
    write(path)
    assert read(path) == CACHED


# The folder


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o750, 0o705, 0o1777])
def test_a_folder_that_others_can_enter_is_not_used(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    write(path)
    path.chmod(mode)
    assert read(path) is None
    assert f"cannot use the object cache {path}: others have access to it" in the_line(caplog)


def test_a_folder_of_another_user_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(path)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert read(path) is None
    assert "it belongs to user" in the_line(caplog)


def test_a_folder_that_is_a_link_is_not_used(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read(path) is None
    assert f"cannot use the object cache {path}: " in the_line(caplog)


def test_a_folder_that_is_a_file_is_not_used(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("")
    assert read(path) is None
    assert "(ENOTDIR)" in the_line(caplog)


def test_a_refused_folder_leaves_no_descriptor(path: Path) -> None:
    write(path)
    path.chmod(0o777)
    before = len(os.listdir("/proc/self/fd"))
    assert read(path) is None
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_disk_that_takes_nothing_costs_a_line_and_leaves_no_file(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    code: int,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with ObjectCache(path).opened() as folder:
        assert folder is not None
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fails)
            folder.write(KEY, CACHED)
    assert errno.errorcode[code] in the_line(caplog)
    assert "the next start compiles it again" in the_line(caplog)
    assert list(path.iterdir()) == []


# Several objects


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_objects_that_were_used_last_are_kept(path: Path) -> None:
    keys = [f"{number:064}" for number in range(KEPT_OBJECTS + 2)]
    for number, key in enumerate(keys[:-1]):
        write(path, key)
        age(object_of(path, key), 1000 - number)
    assert read(path, keys[1]) == CACHED
    write(path, keys[-1])
    kept = {file.name for file in path.iterdir()}
    assert kept == {object_of(path, key).name for key in (*keys[3:], keys[1])}


def test_files_that_a_killed_agent_was_writing_are_removed_later(path: Path) -> None:
    write(path)
    for name, seconds in (("old.tmp", 3600), ("new.tmp", 0)):
        (path / name).write_text("")
        age(path / name, seconds)
    write(path, OTHER_KEY)
    assert {file.name for file in path.iterdir() if file.suffix == ".tmp"} == {"new.tmp"}


def _write_many(path: Path, number: int) -> None:
    folder = CacheFolder(path)
    for repetition in range(50):
        key = f"{repetition % 6:064}"
        folder.write(key, CachedObject(bytes([number]) * 100_000, {}))
        found = folder.read(f"{(repetition + 1) % 6:064}")
        assert found is None or len(set(found.content)) == 1


def test_agents_that_write_at_once_never_read_half_an_object(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, number)) for number in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    names = sorted(file.name for file in path.iterdir())
    assert not [name for name in names if name.endswith(".tmp")]
    assert 1 <= len(names) <= KEPT_OBJECTS + 2


def test_a_file_holds_nothing_that_would_be_executed_by_reading_it(path: Path) -> None:
    write(path)
    content = object_of(path).read_bytes()
    header = json.loads(content[48 : content.index(CACHED.content)])
    assert header == {"key": KEY, "attached": dict(CACHED.attached)}


# The option


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Path("/var/cache/latencyprobe")),
        (("--object-cache=/elsewhere/objects",), Path("/elsewhere/objects")),
        (("--object-cache=none",), None),
    ],
)
def test_the_folder_is_an_option_of_the_agent(
    arguments: tuple[str, ...], expected: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENCYPROBE_OBJECT_CACHE", raising=False)
    started: list[Settings] = []
    monkeypatch.setattr(cli, "_start", lambda settings, **_: started.append(settings))
    result = CliRunner().invoke(cli.agent_command, ["--socket=/s", *arguments])
    assert result.exit_code == 0, result.output
    assert [settings.object_cache for settings in started] == [expected]
