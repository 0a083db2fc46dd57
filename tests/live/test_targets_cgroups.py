"""Cgroups and containers, on the machine's own hierarchy."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.desired import CgroupSelector, ContainerSelector
from latencyprobe_agent.targets.resolver import Resolver
from tests.live.targets import follow, hierarchy_root, made_cgroup, netns_of, sleeper

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
# Of a static pod: the hash of its file.
STATIC = "8b1c3f9d5e7a4602b9f0c1d2e3f4a5b6"
CID = "ab" * 32
BURSTABLE = "kubepods.slice/kubepods-burstable.slice"


def test_a_cgroup_is_followed_from_empty_to_gone() -> None:
    resolver = Resolver()
    with made_cgroup() as cgroup:
        target = CgroupSelector(str(cgroup))
        resolver.track([target])
        empty = resolver.facts_of(target)
        assert (empty.state, empty.message) == (
            TargetState.PENDING,
            "the cgroup has no processes yet",
        )
        with sleeper(cgroup=cgroup) as process:
            facts = follow(resolver, target, lambda f: f.pids, "its process")
            assert facts.state is TargetState.ATTACHED
            assert facts.pids == (process.pid,)
            assert facts.cgroup_ids == {cgroup.stat().st_ino}
            assert facts.cgroup_directories == {str(cgroup)}
            assert facts.cgroup == "/" + str(cgroup.relative_to(hierarchy_root()))
            assert facts.netns == {netns_of(process.pid)}
        facts = follow(resolver, target, lambda f: not f.pids, "no process")
        assert (facts.state, facts.message) == (
            TargetState.ATTACHED,
            "the cgroup has no processes now",
        )
    follow(resolver, target, lambda f: f.state is TargetState.GONE, "gone")


def test_nested_cgroups_are_followed() -> None:
    resolver = Resolver()
    with made_cgroup() as cgroup, sleeper(cgroup=cgroup) as process:
        target = CgroupSelector(str(cgroup))
        resolver.track([target])
        nested = cgroup / "a" / "b"
        nested.mkdir(parents=True)
        ids = {path.stat().st_ino for path in (cgroup, nested.parent, nested)}
        follow(resolver, target, lambda f: f.cgroup_ids == ids, "three cgroups")
        with sleeper(cgroup=nested) as inner:
            pids = {process.pid, inner.pid}
            follow(resolver, target, lambda f: set(f.pids) == pids, "both processes")
        nested.rmdir()
        follow(resolver, target, lambda f: len(f.cgroup_ids) == 2, "two cgroups")


def test_the_processes_of_a_cgroup_may_live_in_several_namespaces() -> None:
    resolver = Resolver()
    with (
        made_cgroup() as cgroup,
        sleeper(cgroup=cgroup) as here,
        sleeper("unshare", "--net", "sleep", "300", cgroup=cgroup) as there,
    ):
        target = CgroupSelector(str(cgroup))
        resolver.track([target])
        facts = follow(resolver, target, lambda f: len(f.netns) == 2, "two namespaces")
        assert facts.netns == {netns_of(here.pid), netns_of(there.pid)}


@pytest.mark.parametrize(
    ("uid", "layout"),
    [
        (UID, f"kubepods/burstable/pod{UID}/{CID}"),
        (
            UID,
            f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{CID}.scope",
        ),
        (STATIC, f"kubepods/burstable/pod{STATIC}/{CID}"),
        (
            STATIC,
            f"{BURSTABLE}/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{CID}.scope",
        ),
    ],
)
def test_a_container_is_pending_then_attached_then_gone(uid: str, layout: str) -> None:
    resolver = Resolver()
    target = ContainerSelector(uid, CID)
    resolver.track([target])
    pending = resolver.facts_of(target)
    assert pending.state is TargetState.PENDING
    assert "does not exist yet" in pending.message
    with made_cgroup(layout) as cgroup, sleeper(cgroup=cgroup) as process:
        facts = follow(resolver, target, lambda f: f.state is TargetState.ATTACHED, "attached")
        assert facts.pids == (process.pid,)
        assert facts.cgroup_ids == {cgroup.stat().st_ino}
    follow(resolver, target, lambda f: f.state is TargetState.GONE, "gone")


def test_a_container_that_starts_late_is_found_within_a_second_of_its_sandbox() -> None:
    resolver = Resolver()
    target = ContainerSelector(UID, CID)
    with made_cgroup(f"kubepods/pod{UID}") as pod:
        resolver.track([target])
        container = pod / CID
        container.mkdir()
        with sleeper(cgroup=container):
            attached = TargetState.ATTACHED
            follow(resolver, target, lambda f: f.state is attached, "attached")


def test_a_v1_cgroup_is_refused_and_its_counterpart_named() -> None:
    v1 = Path("/sys/fs/cgroup/pids")
    if not (v1 / "cgroup.procs").exists():
        pytest.skip("no v1 hierarchy on this machine")
    resolver = Resolver()
    target = CgroupSelector(str(v1))
    resolver.track([target])
    facts = resolver.facts_of(target)
    assert facts.state is TargetState.FAILED
    assert f"give {hierarchy_root()}" in facts.message
