"""The memory cgroup of a process, on directories that look like each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe.process.memory_cgroup import MemoryCgroup, MemoryLimit
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
