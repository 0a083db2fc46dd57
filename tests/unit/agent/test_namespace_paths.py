"""Paths to a network namespace of which the inode number is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.runtime import namespace_paths
from latencyprobe_agent.kernel.runtime.namespace_paths import find_path, inside

OWN = os.stat("/proc/self/ns/net").st_ino


def test_the_agents_own_namespace_is_found_without_a_hint() -> None:
    assert find_path(OWN, ()) == "/proc/self/ns/net"


@pytest.mark.parametrize("by", ["cgroup", "given path"])
def test_each_hint_leads_to_the_namespace(by: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"1234567\n{os.getpid()}\n")
    path = f"/proc/{os.getpid()}/ns/net"
    cgroups = {str(tmp_path), f"{tmp_path}/gone"} if by == "cgroup" else set()
    first = path if by == "given path" else "/nowhere"
    assert find_path(OWN, cgroups, first) == path


def test_a_named_namespace_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blue").touch()
    monkeypatch.setattr(namespace_paths, "_NAMED", (f"{tmp_path}/none", str(tmp_path)))
    inode = (tmp_path / "blue").stat().st_ino
    assert find_path(inode, (), "/nowhere") == f"{tmp_path}/blue"
    assert find_path(1, (), "/nowhere") is None


def test_a_path_that_leads_elsewhere_by_now_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "gone").touch()
    with (
        pytest.raises(FileNotFoundError, match="another network namespace"),
        inside(str(tmp_path / "gone"), OWN),
    ):
        pass


def test_the_own_namespace_needs_no_capability() -> None:
    with inside("/proc/self/ns/net", OWN):
        assert os.stat("/proc/thread-self/ns/net").st_ino == OWN
