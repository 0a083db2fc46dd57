"""Links of programs to cgroups, on plain directories and a kernel that the test scripts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.libbpf import KernelRefusedError, OnCgroup, ProgramInfo
from latencyprobe_agent.kernel.runtime.cgroup_links import CgroupLinks, CgroupProgram

TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR)


class Kernel:
    """A kernel without programs of others; `refusal`: its answer to each query, if not 0."""

    def __init__(self) -> None:
        self.made = 0
        self.refusal = 0

    def query(self, cgroup_fd: int, attach_type: int, *, effective: bool = False) -> OnCgroup:
        if self.refusal:
            raise KernelRefusedError(self.refusal, "query the programs of a cgroup")
        return OnCgroup((), is_shared=True)

    def attach(self, program_fd: int, target_fd: int, attach_type: int) -> int:
        self.made += 1
        return os.open(os.devnull, os.O_RDONLY)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(libbpf, "program_info", lambda _: ProgramInfo(id=7))
    monkeypatch.setattr(libbpf, "programs_on_cgroup", kernel.query)
    monkeypatch.setattr(libbpf, "create_link", kernel.attach)
    return kernel


@pytest.fixture
def links(kernel: Kernel) -> Iterator[CgroupLinks]:
    links = CgroupLinks([CgroupProgram(5, libbpf.ATTACH_TYPE_SOCK_OPS)])
    yield links
    links.close()


@contextmanager
def failing_opens(monkeypatch: pytest.MonkeyPatch, code: int) -> Iterator[None]:
    def fails(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        yield


@pytest.mark.parametrize("code", TRANSIENT)
def test_programs_stay_on_a_cgroup_that_cannot_be_checked_now(
    kernel: Kernel,
    links: CgroupLinks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    directory = str(tmp_path)
    links.follow([directory])
    with failing_opens(monkeypatch, code):
        links.follow([directory])
    kernel.refusal = code
    links.follow([directory])
    assert links.attached == {directory}
    assert links.refused == {}
    assert kernel.made == 1


def test_cgroups_that_cannot_be_checked_now_are_one_line(
    links: CgroupLinks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directories = [tmp_path / name for name in "abc"]
    for directory in directories:
        directory.mkdir()
    links.follow([*map(str, directories)])
    with failing_opens(monkeypatch, errno.EMFILE):
        links.follow([*map(str, directories)])
    assert len(links.attached) == 3
    assert caplog.text.count("cannot check the programs on") == 1


def test_a_new_cgroup_that_cannot_be_checked_now_is_refused(
    kernel: Kernel, links: CgroupLinks, tmp_path: Path
) -> None:
    kernel.refusal = errno.ENOMEM
    links.follow([str(tmp_path)])
    assert links.attached == frozenset()
    assert "ENOMEM" in links.refused[str(tmp_path)]


def test_programs_leave_a_cgroup_that_is_gone_or_refused(
    kernel: Kernel, links: CgroupLinks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path)
    links.follow([directory])
    with failing_opens(monkeypatch, errno.ENODEV):
        links.follow([directory])
    assert links.attached == frozenset()
    assert links.refused == {}
    links.follow([directory])
    kernel.refusal = errno.EPERM
    links.follow([directory])
    assert links.attached == frozenset()
    assert set(links.refused) == {directory}
