"""The memory cgroup of a process, on directories that look like each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe.process.memory_cgroup import MemoryCgroup, MemoryLimit, MemoryRoom
from latencyprobe.process.mounts import parse_mountinfo

MEBIBYTE = 1 << 20
HYBRID = "4:memory:/pods/a\n1:cpu:/pods/a\n0::/\n"
PURE = "0::/pods/a\n"


def _cgroup(tmp_path: Path, fstype: str, options: str, root: str, text: str) -> MemoryCgroup | None:
    mounts = parse_mountinfo(f"1 2 0:3 {root} {tmp_path} rw - {fstype} none rw,{options}\n")
    return MemoryCgroup.of_this_process(mounts, text)


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_of_v2_the_smallest_limit_above_counts(tmp_path: Path) -> None:
    _file(tmp_path / "pods/a/memory.max", "max\n")
    _file(tmp_path / "pods/a/memory.events", "low 0\noom 5\noom_kill 4\noom_group_kill 0\n")
    _file(tmp_path / "pods/memory.max", f"{64 * MEBIBYTE}\n")
    cgroup = _cgroup(tmp_path, "cgroup2", "nsdelegate", "/", PURE)
    assert cgroup is not None
    assert cgroup.limit() == MemoryLimit("/pods", 64 * MEBIBYTE)
    assert cgroup.oom_kills() == 4


def test_of_v1_the_controllers_own_path_counts(tmp_path: Path) -> None:
    _file(tmp_path / "memory.limit_in_bytes", "9223372036854771712\n")
    _file(tmp_path / "pods/a/memory.limit_in_bytes", f"{32 * MEBIBYTE}\n")
    _file(tmp_path / "pods/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    cgroup = _cgroup(tmp_path, "cgroup", "memory", "/", HYBRID)
    assert cgroup is not None
    assert cgroup.limit() == MemoryLimit("/pods/a", 32 * MEBIBYTE)
    assert cgroup.oom_kills() == 1


def test_of_v2_the_least_room_counts_and_page_cache_is_free(tmp_path: Path) -> None:
    _memory_in_use(tmp_path / "pods/a", "memory.max", "memory.current", 64, 48)
    _file(
        tmp_path / "pods/a/memory.stat",
        f"anon 1\nfile {20 * MEBIBYTE}\ninactive_file {6 * MEBIBYTE}\nactive_file {MEBIBYTE}\n",
    )
    _memory_in_use(tmp_path / "pods", "memory.max", "memory.current", 100, 80)
    _file(tmp_path / "pods/memory.stat", "inactive_file 0\nactive_file 0\n")
    cgroup = _cgroup(tmp_path, "cgroup2", "nsdelegate", "/", PURE)
    assert cgroup is not None
    assert cgroup.limit() == MemoryLimit("/pods/a", 64 * MEBIBYTE)
    assert cgroup.room() == MemoryRoom(MemoryLimit("/pods", 100 * MEBIBYTE), 20 * MEBIBYTE)


def test_of_v1_the_page_cache_of_children_is_free_and_no_room_is_negative(tmp_path: Path) -> None:
    _memory_in_use(tmp_path / "pods/a", "memory.limit_in_bytes", "memory.usage_in_bytes", 64, 60)
    _file(
        tmp_path / "pods/a/memory.stat",
        f"inactive_file {MEBIBYTE}\ntotal_inactive_file {2 * MEBIBYTE}\n"
        f"total_active_file {3 * MEBIBYTE}\n",
    )
    cgroup = _cgroup(tmp_path, "cgroup", "memory", "/", HYBRID)
    assert cgroup is not None
    limit = MemoryLimit("/pods/a", 64 * MEBIBYTE)
    assert cgroup.room() == MemoryRoom(limit, 9 * MEBIBYTE)
    _file(tmp_path / "pods/a/memory.usage_in_bytes", f"{80 * MEBIBYTE}\n")
    assert cgroup.room() == MemoryRoom(limit, 0)


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_limit_there_is_no_bound_to_the_room(tmp_path: Path, limit: str | None) -> None:
    _memory_in_use(tmp_path / "pods/a", "memory.max", "memory.current", 64, 60)
    if limit is not None:
        _file(tmp_path / "pods/a/memory.max", f"{limit}\n")  # memory.stat is missing otherwise
    cgroup = _cgroup(tmp_path, "cgroup2", "rw", "/", PURE)
    assert cgroup is not None
    assert cgroup.room() is None


def _memory_in_use(folder: Path, limit: str, usage: str, most: int, used: int) -> None:
    """Make a cgroup with a limit and memory in use, in MiB."""
    _file(folder / limit, f"{most * MEBIBYTE}\n")
    _file(folder / usage, f"{used * MEBIBYTE}\n")


@pytest.mark.parametrize(("root", "text"), [("/pods/a", PURE), ("/", "0::/\n")])
def test_in_a_container_the_mount_is_our_own_cgroup(tmp_path: Path, root: str, text: str) -> None:
    _file(tmp_path / "memory.max", f"{48 * MEBIBYTE}\n")
    cgroup = _cgroup(tmp_path, "cgroup2", "rw", root, text)
    assert cgroup is not None
    assert cgroup.limit() == MemoryLimit("/", 48 * MEBIBYTE)
    assert cgroup.oom_kills() is None


@pytest.mark.parametrize(
    ("fstype", "options", "root", "text"),
    [
        ("cgroup", "cpu", "/", HYBRID),
        ("cgroup2", "rw", "/elsewhere", PURE),
        ("cgroup2", "rw", "/", ""),
    ],
)
def test_without_a_controller_that_is_visible_nothing_is_known(
    tmp_path: Path, fstype: str, options: str, root: str, text: str
) -> None:
    assert _cgroup(tmp_path, fstype, options, root, text) is None


def test_of_this_machine_it_can_be_read() -> None:
    cgroup = MemoryCgroup.of_this_process()
    assert cgroup is None or (cgroup.oom_kills() or 0) >= 0
