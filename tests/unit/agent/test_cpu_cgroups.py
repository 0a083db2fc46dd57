"""The CPU accounts of targets, in hierarchies of cgroups that the test makes of plain files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.mounts import Mount
from latencyprobe_agent.desired import CgroupSelector, PidSelector, Selector
from latencyprobe_agent.evidence.cgroups import MOST_CGROUPS, CpuCgroups
from latencyprobe_agent.targets.facts import TargetFacts
from tests.unit.agent.scripted import Clock

UID = "11111111-2222-3333-4444-555555555555"
POD = f"/kubepods/burstable/pod{UID}"
TARGET = CgroupSelector("/a")


@dataclass
class Node:
    """A node with v1's hierarchy of the controller `cpu`, and v2's."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    mount_root: str = "/"

    def mounts(self, *, v1: bool) -> tuple[Mount, ...]:
        (self.root / "v2").mkdir(exist_ok=True)
        v2 = Mount(str(self.root / "v2"), self.mount_root, "cgroup2", frozenset({"rw"}))
        cpu = Mount(
            str(self.root / "v1"), self.mount_root, "cgroup", frozenset({"rw", "cpu", "cpuacct"})
        )
        memory = Mount(str(self.root / "memory"), "/", "cgroup", frozenset({"rw", "memory"}))
        return (memory, cpu, v2) if v1 else (v2,)

    def cgroups(self, *, v1: bool = False) -> CpuCgroups:
        return CpuCgroups(
            self.mounts(v1=v1), proc_root=self.root / "proc", clock=lambda: self.clock.now
        )

    def throttle(self, path: str, ms: int, *, version: str = "v2", periods: int = 0) -> None:
        """Have a cgroup throttled for so long, in all."""
        directory = self.root / version / path.strip("/")
        directory.mkdir(parents=True, exist_ok=True)
        time = f"throttled_usec {ms * 1000}" if version == "v2" else f"throttled_time {ms}000000"
        text = f"nr_periods {periods or 10 * ms}\nnr_throttled {ms}\n{time}\n"
        (directory / "cpu.stat").write_text(text)

    def press(self, path: str, us: int) -> None:
        directory = self.root / "v2" / path.strip("/")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.pressure").write_text(f"some avg10=0.00 total={us}\n")

    def run(self, pid: int, cgroups: Mapping[str, str]) -> None:
        process = self.root / "proc" / str(pid)
        process.mkdir(parents=True, exist_ok=True)
        lines = (f"{n}:{name}:{path}\n" for n, (name, path) in enumerate(cgroups.items()))
        (process / "cgroup").write_text("".join(lines))

    def directory(self, path: str) -> str:
        return str(self.root / "v2" / path.strip("/"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def facts(node: Node, *paths: str, pids: tuple[int, ...] = ()) -> TargetFacts:
    """A target that consists of cgroups."""
    return TargetFacts(
        TargetState.ATTACHED,
        cgroup=paths[0],
        pids=pids,
        cgroup_directories=frozenset(map(node.directory, paths)),
    )


def of_processes(*pids: int) -> TargetFacts:
    return TargetFacts(TargetState.ATTACHED, pids=pids, tgids=frozenset(pids))


def grown(cgroups: CpuCgroups, target: TargetFacts, selector: Selector = TARGET) -> dict[str, int]:
    return cgroups.grown({selector: target}).get(selector, {})


def throttled(ms: int) -> dict[str, int]:
    return {
        "cpuThrottledNs": ms * 1_000_000,
        "cpuThrottledPeriods": ms,
        "cpuPeriods": 10 * ms,
    }


def test_throttling_from_before_a_target_came_is_not_its_own(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 7)
    node.press("/a", 100)
    assert grown(cgroups, target) == {}
    node.throttle("/a", 12)
    node.press("/a", 130)
    assert grown(cgroups, target) == {**throttled(5), "cpuPressureNs": 30_000}
    assert grown(cgroups, target) == {}


@pytest.mark.parametrize(
    ("of_pod", "of_container", "expected"), [(3, 9, 9), (9, 3, 9), (0, 4, 4), (5, 5, 5)]
)
def test_of_a_pods_and_a_containers_quota_the_longer_throttling_counts(
    node: Node, of_pod: int, of_container: int, expected: int
) -> None:
    container = f"{POD}/c1"
    cgroups, target = node.cgroups(), facts(node, container)
    for path in (POD, container):
        node.throttle(path, 0)
    grown(cgroups, target)
    node.throttle(POD, of_pod)
    node.throttle(container, of_container)
    assert grown(cgroups, target) == throttled(expected)


def test_a_quota_above_the_pod_is_not_the_pods(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, f"{POD}/c1")
    for ms in (0, 5):
        node.throttle("/kubepods", ms)
        node.throttle(POD, 0)
        assert grown(cgroups, target) == {}


def test_a_quota_above_a_persons_cgroup_holds_it_up(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/user.slice/job")
    seen: dict[str, int] = {}
    for ms in (0, 5):
        node.throttle("/user.slice", ms)
        seen = grown(cgroups, target)
    assert seen == throttled(5)


def test_a_quota_of_a_cgroup_inside_the_target_counts(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, POD, f"{POD}/c1", f"{POD}/c2")
    seen: dict[str, int] = {}
    for ms in (0, 5):
        node.throttle(f"{POD}/c2", ms)
        seen = grown(cgroups, target)
    assert seen == throttled(5)


def test_pressure_is_that_of_the_whole_target(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, POD, f"{POD}/c1")
    seen: dict[str, int] = {}
    for us in (0, 7):
        node.press(POD, 3 * us)
        node.press(f"{POD}/c1", us)
        seen = grown(cgroups, target)
    assert seen == {"cpuPressureNs": 21_000}


def test_a_container_made_between_two_polls_counts_from_its_start(node: Node) -> None:
    cgroups = node.cgroups()
    node.throttle(POD, 0)
    grown(cgroups, facts(node, POD))
    node.throttle(f"{POD}/c1", 5)
    assert grown(cgroups, facts(node, POD, f"{POD}/c1")) == throttled(5)


def test_a_cgroup_of_the_same_name_is_another_one(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 100)
    grown(cgroups, target)
    old = node.root / "v2/a/cpu.stat"
    old.rename(node.root / "kept")  # its inode stays in use
    assert grown(cgroups, target) == {}
    node.throttle("/a", 100)
    grown(cgroups, target)
    (node.root / "v2/a/cpu.stat").rename(node.root / "kept too")
    node.throttle("/a", 5)
    assert grown(cgroups, target) == throttled(5)


def test_an_account_that_fell_is_left_out_and_followed_again(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    for ms, expected in ((100, {}), (20, {}), (21, throttled(1))):
        node.throttle("/a", ms)
        assert grown(cgroups, target) == expected


def test_on_a_hybrid_node_the_quota_is_where_the_processes_are_in_v1(node: Node) -> None:
    node.run(41, {"name=systemd": "/x", "cpu,cpuacct": f"{POD}/c1", "": f"{POD}/c1"})
    cgroups, target = node.cgroups(v1=True), facts(node, f"{POD}/c1", pids=(41,))
    seen: dict[str, int] = {}
    for ms in (0, 6):
        node.throttle(f"{POD}/c1", ms, version="v1")
        node.throttle(f"{POD}/c1", 50 * ms)  # v2's cpu.stat has nothing to say there
        node.press(f"{POD}/c1", ms)
        seen = grown(cgroups, target)
    assert seen == {**throttled(6), "cpuPressureNs": 6000}


@pytest.mark.parametrize("v1", [True, False])
def test_a_process_has_the_accounts_of_its_cgroup(node: Node, v1: bool) -> None:
    node.run(41, {"cpu,cpuacct": "/job", "": "/job"})
    cgroups = node.cgroups(v1=v1)
    seen: dict[str, int] = {}
    for ms in (0, 6):
        node.throttle("/job", ms, version="v1" if v1 else "v2")
        node.press("/job", ms)
        seen = grown(cgroups, of_processes(41), PidSelector(41))
    assert seen == {**throttled(6), "cpuPressureNs": 6000}


@pytest.mark.parametrize("v1", [True, False])
def test_a_process_in_the_root_cgroup_has_none(node: Node, v1: bool) -> None:
    node.run(41, {"cpu": "/", "": "/"})
    cgroups = node.cgroups(v1=v1)
    for ms in (0, 6):
        node.throttle("/", ms, version="v1" if v1 else "v2")
        node.press("/", ms)
        assert grown(cgroups, of_processes(41)) == {}


def test_an_agent_in_a_cgroup_namespace_finds_v1s_path_by_that_of_v2(node: Node) -> None:
    node = replace(node, mount_root="/../../..")
    node.run(41, {"cpu": f"/../../pod{UID}/c1"})
    cgroups = node.cgroups(v1=True)
    seen: dict[str, int] = {}
    for ms in (0, 6):
        node.throttle(f"{POD}/c1", ms, version="v1")
        seen = grown(cgroups, facts(node, f"{POD}/c1", pids=(41,)))
    assert seen == throttled(6)


@pytest.mark.parametrize("path", ["/../../elsewhere", "/../..", "/a/../c1", "//", "/c1 (deleted)"])
def test_a_path_that_cannot_be_derived_has_no_accounts(node: Node, path: str) -> None:
    node.run(41, {"cpu": path})
    cgroups = node.cgroups(v1=True)
    for ms in (0, 6):
        for other in ("/elsewhere", "/c1", "/a", f"{POD}/c1"):
            node.throttle(other, ms, version="v1")
        assert grown(cgroups, facts(node, f"{POD}/c1", pids=(41,))) == {}


def test_a_process_that_is_moved_is_followed(node: Node) -> None:
    for path in ("/before", "/after"):
        node.throttle(path, 0)
    node.run(41, {"": "/before"})
    cgroups = node.cgroups()
    grown(cgroups, of_processes(41))
    node.run(41, {"": "/after"})
    node.clock.now += 60
    node.throttle("/after", 5)
    assert grown(cgroups, of_processes(41)) == {}
    node.throttle("/after", 8)
    assert grown(cgroups, of_processes(41)) == throttled(3)


def test_files_that_vanish_or_make_no_sense_are_no_error(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 1)
    grown(cgroups, target)
    for text in ("", "\x00", "nr_periods 1\n" * 9, "usage_usec 5\n"):
        (node.root / "v2/a/cpu.stat").write_text(text)
        assert grown(cgroups, target) == {}
    (node.root / "v2/a/cpu.stat").unlink()
    assert grown(cgroups, target) == {}
    assert grown(cgroups, of_processes(99), PidSelector(99)) == {}


def test_a_target_of_very_many_cgroups_has_its_upper_ones_read(node: Node) -> None:
    names = [f"{POD}/c1/inner{number}" for number in range(3 * MOST_CGROUPS)]
    cgroups, target = node.cgroups(), facts(node, POD, f"{POD}/c1", *names)
    seen: dict[str, int] = {}
    for ms in (0, 5):
        node.throttle(f"{POD}/c1", ms)
        for name in names:
            node.throttle(name, ms)
        seen = grown(cgroups, target)
    assert seen == throttled(5)


def test_a_hostile_name_of_a_cgroup_is_a_name(node: Node) -> None:
    name = "/a:b\x1b[31m c\udcff"
    cgroups, target = node.cgroups(), facts(node, name)
    seen: dict[str, int] = {}
    for ms in (0, 5):
        node.throttle(name, ms)
        seen = grown(cgroups, target)
    assert seen == throttled(5)


def test_targets_that_are_not_kept_begin_again(node: Node) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 1)
    grown(cgroups, target)
    cgroups.keep({TARGET, 7})
    node.throttle("/a", 2)
    assert grown(cgroups, target) == throttled(1)
    cgroups.keep({7})
    node.throttle("/a", 9)
    assert grown(cgroups, target) == {}


def test_without_any_hierarchy_there_are_no_accounts(node: Node) -> None:
    assert grown(CpuCgroups(()), facts(node, "/a")) == {}
    elsewhere = CpuCgroups(node.mounts(v1=True), cgroup_root="/nowhere")
    assert grown(elsewhere, facts(node, "/a")) == {}


TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR)


@contextmanager
def unreadable(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> Iterator[None]:
    """Have all files of this name fail to open, with this error."""
    unhindered = os.open

    def fails(path: str, flags: int) -> int:
        if os.path.basename(path) == name:
            raise OSError(code, os.strerror(code), path)
        return unhindered(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        yield


@pytest.mark.parametrize("code", TRANSIENT)
@pytest.mark.parametrize(
    ("file", "expected"), [("cpu.stat", throttled(8)), ("cpu.pressure", {"cpuPressureNs": 8000})]
)
def test_growth_while_a_file_cannot_be_read_is_reported_later(
    node: Node, monkeypatch: pytest.MonkeyPatch, code: int, file: str, expected: dict[str, int]
) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 1)
    node.press("/a", 1)
    grown(cgroups, target)
    with unreadable(monkeypatch, file, code):
        for amount in (4, 9):
            node.throttle("/a", amount)
            node.press("/a", amount)
            assert not grown(cgroups, target).keys() & expected.keys()
    assert grown(cgroups, target) == expected
    assert grown(cgroups, target) == {}


def test_a_cgroup_that_is_gone_is_no_transient_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups, target = node.cgroups(), facts(node, "/a")
    node.throttle("/a", 1)
    grown(cgroups, target)
    with unreadable(monkeypatch, "cpu.stat", errno.ENODEV):
        grown(cgroups, target)
    node.throttle("/a", 5)
    assert grown(cgroups, target) == {}


def test_a_new_container_counts_from_its_start_also_if_it_cannot_be_read_at_first(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups, both = node.cgroups(), facts(node, POD, f"{POD}/c1")
    node.throttle(POD, 0)
    grown(cgroups, facts(node, POD))
    node.throttle(f"{POD}/c1", 5)
    with unreadable(monkeypatch, "cpu.stat", errno.EMFILE):
        assert grown(cgroups, both) == {}
    assert grown(cgroups, both) == throttled(5)


def test_a_process_that_cannot_be_read_now_stays_in_its_cgroup(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.run(41, {"": "/job"})
    node.throttle("/job", 1)
    cgroups = node.cgroups()
    grown(cgroups, of_processes(41))
    node.clock.now += 60
    node.throttle("/job", 3)
    with unreadable(monkeypatch, "cgroup", errno.ENFILE):
        assert grown(cgroups, of_processes(41)) == throttled(2)
    node.throttle("/job", 7)
    assert grown(cgroups, of_processes(41)) == throttled(4)
