"""Paths and layouts, on directories that look like each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe.process.mounts import parse_mountinfo
from latencyprobe_agent.desired import ContainerSelector
from latencyprobe_agent.targets.cgroups import (
    MAX_CGROUPS_OF_POD,
    CgroupTracker,
    Hierarchy,
    cgroup_version,
    find_hierarchy,
    mount_of,
)
from latencyprobe_agent.targets.containers import ContainerFinder, ContainerTracker
from latencyprobe_agent.targets.netns import NetnsTracker
from latencyprobe_agent.targets.processes import Processes, parse_stat
from tests.unit.agent.scripted import Clock

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
UID_ = UID.replace("-", "_")
CID = "ab" * 32
OTHER = "cd" * 32

HYBRID = """\
24 1 0:22 / /sys rw,nosuid shared:2 - sysfs sysfs rw
31 24 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
"""
PURE = "41 24 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
IN_A_POD = """\
41 24 0:38 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw
55 24 0:38 /../../.. /host/sys/fs/cgroup ro,relatime - cgroup2 cgroup rw
"""
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("mountinfo", "cgroup_root", "version", "root"),
    [
        (HYBRID, None, "hybrid", "/sys/fs/cgroup/unified"),
        (HYBRID, "/sys/fs/cgroup", "hybrid", "/sys/fs/cgroup/unified"),
        (HYBRID, "/host", "hybrid", None),
        (PURE, None, "v2", "/sys/fs/cgroup"),
        (IN_A_POD, None, "v2", "/host/sys/fs/cgroup"),
        (IN_A_POD, "/sys/fs/cgroup", "v2", "/sys/fs/cgroup"),
        (V1, None, "v1", None),
        ("", None, "none", None),
    ],
)
def test_the_hierarchy_is_where_the_mounts_say(
    mountinfo: str, cgroup_root: str | None, version: str, root: str | None
) -> None:
    mounts = parse_mountinfo(mountinfo)
    assert cgroup_version(mounts) == version
    assert find_hierarchy(mounts, cgroup_root) == root


def test_a_mount_point_may_have_any_character_in_it() -> None:
    (mount,) = parse_mountinfo(r"1 2 0:3 / /a\040b\134040c rw - cgroup2 none rw")
    assert mount.point == r"/a b\040c"


@pytest.mark.parametrize("separator", list("\v\f\r\x1c\x1d\x1e\x85\xa0\u2003\u2028"))
def test_a_mount_point_forges_no_mount(separator: str) -> None:
    """The kernel escapes space, tab and line feed only."""
    forged = f"/a{separator}1 2 0:3 / /forged rw - cgroup2 none rw"
    (mount,) = parse_mountinfo(f"1 2 0:3 / {forged.replace(' ', chr(92) + '040')} rw - ext4 x rw\n")
    assert (mount.point, mount.fstype) == (forged, "ext4")


@pytest.mark.parametrize("separator", list("\v\f\r\x1c\x1d\x1e\x85\u2028"))
def test_the_name_of_a_process_forges_no_line_of_its_status(tmp_path: Path, separator: str) -> None:
    (tmp_path / "7").mkdir()
    status = f"Name:\tx{separator}Tgid:\t1\nUmask:\t0022\nTgid:\t7\n"
    (tmp_path / "7/status").write_bytes(status.encode())
    assert Processes(tmp_path).tgid(7) == 7


def test_a_path_lies_in_the_nearest_mount() -> None:
    mounts = parse_mountinfo(HYBRID)
    nearest = mount_of("/sys/fs/cgroup/unified/a", mounts)
    assert nearest is not None
    assert nearest.fstype == "cgroup2"
    beside = mount_of("/sys/fs/cgroup/unifiedly", mounts)
    assert beside is not None
    assert beside.fstype == "tmpfs"


KIND = "system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice"
BURSTABLE = "kubepods.slice/kubepods-burstable.slice"
BEST_EFFORT = "kubepods.slice/kubepods-besteffort.slice"

# As seen with each runtime, driver and nesting.
LAYOUTS = [
    f"kubepods/pod{UID}/{CID}",
    f"kubepods/burstable/pod{UID}/{CID}",
    f"kubepods/besteffort/pod{UID}/{CID}",
    f"kubepods/besteffort/pod{UID}/crio-{CID}",
    f"kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{CID}.scope",
    f"{BURSTABLE}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{CID}.scope",
    f"{BURSTABLE}/kubepods-burstable-pod{UID_}.slice/docker-{CID}.scope",
    f"{BEST_EFFORT}/kubepods-besteffort-pod{UID_}.slice/crio-{CID}.scope",
    f"kubelet/kubepods/burstable/pod{UID}/{CID}",
    f"docker/{OTHER}/kubelet/kubepods/burstable/pod{UID}/{CID}",
    f"{KIND}/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{CID}.scope",
    f"system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{CID}",
    f"system.slice/k3s.service/kubepods-pod{UID_}.slice:cri-containerd:{CID}",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_container_is_found_wherever_its_runtime_puts_it(tmp_path: Path, layout: str) -> None:
    # Others are there too: another pod, another container, an ordinary service.
    for path in (
        layout,
        layout.replace(CID, OTHER),
        layout.replace(UID, UID[::-1]).replace(UID_, UID_[::-1]),
        "system.slice/cron.service",
        "user.slice",
    ):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    finder = ContainerFinder(Hierarchy(str(tmp_path)))
    assert finder.find(ContainerSelector(UID, CID)) == str(tmp_path / layout)
    assert finder.find(ContainerSelector(UID, "ef" * 32)) is None


def test_a_container_of_another_pod_is_not_found(tmp_path: Path) -> None:
    (tmp_path / f"kubepods/pod{UID}/{CID}").mkdir(parents=True)
    finder = ContainerFinder(Hierarchy(str(tmp_path)))
    assert finder.find(ContainerSelector(UID.replace("0", "1"), CID)) is None


def test_kubepods_that_come_later_are_found_at_the_next_survey(tmp_path: Path) -> None:
    clock = Clock()
    finder = ContainerFinder(Hierarchy(str(tmp_path)), clock=clock)
    assert finder.find(ContainerSelector(UID, CID)) is None
    assert "no kubepods directory" in finder.describe()
    container = tmp_path / f"kubepods/burstable/pod{UID}/{CID}"
    container.mkdir(parents=True)
    assert finder.find(ContainerSelector(UID, CID)) is None
    clock.now += 10
    assert finder.find(ContainerSelector(UID, CID)) == str(container)
    assert "/kubepods/burstable" in finder.describe()


def _fake_container(directory: Path, *pids: int) -> None:
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


def _track(tmp_path: Path) -> ContainerTracker:
    hierarchy = Hierarchy(str(tmp_path / "cgroup"))
    return ContainerTracker(
        ContainerFinder(hierarchy),
        hierarchy,
        Processes(tmp_path / "proc"),
        ContainerSelector(UID, CID),
    )


def _fake_process(tmp_path: Path, pid: int, netns: Path) -> None:
    directory = tmp_path / "proc" / str(pid) / "ns"
    directory.mkdir(parents=True)
    netns.touch()
    (directory / "net").hardlink_to(netns)


def test_a_container_is_recognised_by_its_cgroups_and_namespaces(tmp_path: Path) -> None:
    container = tmp_path / f"cgroup/kubepods/pod{UID}/{CID}"
    _fake_container(container, 11)
    _fake_container(container / "nested", 12)
    _fake_process(tmp_path, 11, tmp_path / "netns-a")
    _fake_process(tmp_path, 12, tmp_path / "netns-b")
    facts = _track(tmp_path).poll()
    assert facts.state is TargetState.ATTACHED, facts.message
    assert facts.pids == (11, 12)
    assert facts.cgroup == f"/kubepods/pod{UID}/{CID}"
    assert facts.cgroup_ids == {container.stat().st_ino, (container / "nested").stat().st_ino}
    assert facts.netns == {(tmp_path / name).stat().st_ino for name in ("netns-a", "netns-b")}


def test_of_any_number_of_cgroups_in_a_container_the_upper_levels_are_listed(
    tmp_path: Path,
) -> None:
    container = tmp_path / f"cgroup/kubepods/pod{UID}/{CID}"
    for level in (container, container / "inner", container / "inner/most"):
        _fake_container(level)
    for number in range(2 * MAX_CGROUPS_OF_POD):
        _fake_container(container / f"inner/most/{number}")
    facts = _track(tmp_path).poll()
    assert len(facts.cgroup_ids) <= MAX_CGROUPS_OF_POD
    assert {str(container), str(container / "inner/most")} <= facts.cgroup_directories
    assert facts.is_partial
    assert f"more than {MAX_CGROUPS_OF_POD} cgroups" in facts.message


def test_a_container_with_as_many_cgroups_as_are_listed_is_whole(tmp_path: Path) -> None:
    container = tmp_path / f"cgroup/kubepods/pod{UID}/{CID}"
    for level in (container, *(container / str(n) for n in range(MAX_CGROUPS_OF_POD - 1))):
        _fake_container(level)
    facts = _track(tmp_path).poll()
    assert len(facts.cgroup_ids) == MAX_CGROUPS_OF_POD
    assert not facts.is_partial


def test_processes_outside_of_our_pid_namespace_ask_for_host_pid(tmp_path: Path) -> None:
    _fake_container(tmp_path / f"cgroup/kubepods/pod{UID}/{CID}", 0, 0)
    facts = _track(tmp_path).poll()
    assert facts.state is TargetState.FAILED
    assert "hostPID: true" in facts.message


def test_without_a_v2_hierarchy_containers_fail_with_a_reason() -> None:
    tracker = ContainerTracker(None, None, Processes(), ContainerSelector(UID, CID))
    facts = tracker.poll()
    assert facts.state is TargetState.FAILED
    assert "no cgroup v2 hierarchy" in facts.message


def _cgroup_failure(path: Path | str, mountinfo: str = HYBRID) -> str:
    mounts = parse_mountinfo(mountinfo)
    root = find_hierarchy(mounts)
    hierarchy = Hierarchy(root) if root else None
    facts = CgroupTracker(hierarchy, mounts, Processes(), str(path)).poll()
    assert facts.state is TargetState.FAILED
    return facts.message


def test_a_path_that_is_no_cgroup_is_refused_with_the_place_of_cgroups(tmp_path: Path) -> None:
    where = "cgroups are directories below /sys/fs/cgroup/unified"
    (tmp_path / "file").touch()
    assert _cgroup_failure(tmp_path / "no") == f"{tmp_path}/no does not exist; {where}"
    assert _cgroup_failure(tmp_path / "file") == f"{tmp_path}/file is not a directory; {where}"
    ordinary = _cgroup_failure(tmp_path)
    assert ordinary == f"{tmp_path} is a directory but not a cgroup; {where}"
    assert "no cgroup v2 hierarchy is mounted" in _cgroup_failure(tmp_path, V1)


def test_a_v1_path_is_refused_with_its_counterpart(tmp_path: Path) -> None:
    (tmp_path / "memory/a").mkdir(parents=True)
    (tmp_path / "memory/b").mkdir()
    (tmp_path / "unified/a").mkdir(parents=True)
    mountinfo = HYBRID.replace("/sys/fs/cgroup", str(tmp_path))
    assert f"give {tmp_path}/unified/a" in _cgroup_failure(tmp_path / "memory/a", mountinfo)
    lonely = _cgroup_failure(tmp_path / "memory/b", mountinfo)
    assert f"{tmp_path}/unified/b does not exist" in lonely
    assert "/proc/PID/cgroup" in lonely


def test_a_file_that_is_no_namespace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stale").touch()
    for path, message in (
        (tmp_path / "stale", "is a regular file, not a network namespace"),
        (tmp_path, "is not a network namespace"),
        (Path("/dev/null"), "is not a network namespace"),
        (tmp_path / "missing", "No such file or directory"),
        (Path("/proc/self/ns/uts"), "is a namespace of another type, not a network namespace"),
    ):
        facts = NetnsTracker(str(path)).poll()
        assert facts.state is TargetState.FAILED
        assert message in facts.message


def test_a_namespace_is_a_target_as_a_whole() -> None:
    inode = Path("/proc/self/ns/net").stat().st_ino
    facts = NetnsTracker("/proc/self/ns/net").poll()
    assert facts.state is TargetState.ATTACHED
    assert facts.netns == facts.netns_wide == {inode}


def test_a_process_may_be_called_anything() -> None:
    tail = " 1" * 4 + " 2097152" + " 0" * 12 + " 777 0 0"
    stat = parse_stat(f"42 (a) b (c)) S 1{tail}")
    assert (stat.name, stat.state, stat.start_time) == ("a) b (c)", "S", 777)
    assert stat.is_kernel_thread
    assert not stat.has_exited
