"""Pods that are named before they have a container, from the request to the slot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from latencyprobe.domain import fairness
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import (
    ContainerSelector,
    Desired,
    InvalidStateError,
    PodSelector,
    admit,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.plan import SlotKey, pods, wanted_slots
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.cgroups import MAX_CGROUPS_OF_POD, Hierarchy
from latencyprobe_agent.targets.containers import ContainerFinder, pod_uid_of
from latencyprobe_agent.targets.facts import TargetFacts, pending
from latencyprobe_agent.targets.pods import PodTracker
from latencyprobe_agent.targets.processes import Processes
from latencyprobe_agent.targets.survey import holds_pods
from tests.unit.agent.scripted import Clock

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
UID_ = UID.replace("-", "_")
STATIC = "8b1c3f9d5e7a4602b9f0c1d2e3f4a5b6"
OTHER = "5d0c8f4e-7a3b-4c1d-9e2f-6b8a0d1c2e3f"
CID = "ab" * 32
POD = PodSelector(UID)


def _state(*named: pb.Pod, container: pb.Container | None = None) -> pb.DesiredState:
    running = pb.Container(pod_uid=UID, container_id=f"containerd://{CID}")
    running.MergeFrom(container or pb.Container())
    probe = pb.Probe(
        id="p",
        modules=["rx"],
        interval=Duration(seconds=1),
        window=Duration(seconds=60),
        targets=[pb.Target(id="c", container=running)],
        pods=named,
    )
    return pb.DesiredState(generation=1, probes=[probe])


def _running() -> pb.DesiredState:
    names = pb.Container(pod_name="job-x", container_name="main", whole_pod=True)
    return _state(container=names)


def _named() -> Desired:
    return parse_desired(_running())


def test_a_pod_without_a_container_is_a_target_of_its_uid() -> None:
    state = _state(pb.Pod(uid=OTHER, name="job-y", containers=["main", "proxy"]))
    (probe,) = parse_desired(state).probes
    target, container = probe.targets
    assert (target.id, target.selector) == (OTHER, PodSelector(OTHER))
    assert (target.pod_name, target.containers) == ("job-y", ("main", "proxy"))
    assert container.selector == ContainerSelector(UID, CID)
    assert probe.parts == {}


def test_the_containers_of_a_whole_pod_are_measured_as_one_target() -> None:
    state = _running()
    second = state.probes[0].targets.add()
    second.CopyFrom(state.probes[0].targets[0])
    second.id, second.container.container_name = "d", "proxy"
    (probe,) = parse_desired(state).probes
    (target,) = probe.targets
    assert (target.id, target.selector, target.pod_name) == (UID, POD, "job-x")
    assert target.containers == ("main", "proxy")
    assert probe.parts == {"c": UID, "d": UID}


def test_a_pod_is_the_same_target_before_and_after_its_first_container() -> None:
    waiting = parse_desired(_state(pb.Pod(uid=UID, name="job-x", containers=["main"])))
    assert waiting.probes[0].targets[0] == _named().probes[0].targets[0]


def test_an_invalid_container_of_a_whole_pod_is_refused_alone() -> None:
    state = _running()
    second = state.probes[0].targets.add()
    second.CopyFrom(state.probes[0].targets[0])
    second.id, second.container.container_id = "d", "x"
    desired = parse_desired(state)
    assert [target.id for target in desired.probes[0].targets] == [UID]
    assert set(desired.refused["p"]) == {"d"}


@pytest.mark.parametrize(
    ("pod", "problem"),
    [
        (pb.Pod(uid="../../etc"), "pods[0].uid: '../../etc' is not a pod UID"),
        (pb.Pod(uid=UID, name="a\x1b[31m"), "pods[0].name: "),
        (pb.Pod(uid=UID, containers=["a" * 254]), "pods[0].containers: "),
    ],
)
def test_an_invalid_pod_is_refused_alone(pod: pb.Pod, problem: str) -> None:
    desired = parse_desired(_state(pod))
    (probe,) = desired.probes
    assert [target.id for target in probe.targets] == ["c"]
    assert desired.refused["p"][pod.uid].startswith(problem)


@pytest.mark.parametrize("uids", [(UID, UID), ("",), ("c",)])
def test_a_probe_whose_pods_have_no_ids_of_their_own_is_refused(uids: tuple[str, ...]) -> None:
    desired = parse_desired(_state(*(pb.Pod(uid=uid) for uid in uids)))
    assert desired.probes == ()
    assert "c" in desired.refused["p"]


def test_the_state_as_a_whole_is_not_refused_for_a_pod() -> None:
    with pytest.raises(InvalidStateError):
        parse_desired(pb.DesiredState(probes=[pb.Probe(id="")]))
    assert parse_desired(_state(pb.Pod(uid="x"))).probes


def test_containers_of_a_pod_beyond_the_limit_are_refused_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fairness, "MAX_TARGETS", 0)
    admitted = admit(_named())
    assert admitted.probes == ()
    assert admitted.refused["p"][UID] == admitted.refused["p"]["c"]


def test_a_pod_has_a_slot_from_its_cgroup_on_and_a_row_once_it_is_attached() -> None:
    desired = _named()
    key = SlotKey(POD, SocketFilter())
    stages = {
        "bound": pending("no cgroup yet"),
        "made": TargetFacts(TargetState.PENDING, cgroup_ids=frozenset({7})),
        "attached": TargetFacts(
            TargetState.ATTACHED, cgroup_ids=frozenset({7}), netns=frozenset({9})
        ),
        "gone": TargetFacts(TargetState.GONE),
    }
    slots = {name: wanted_slots(desired, {POD: facts}) for name, facts in stages.items()}
    assert slots == {"bound": (), "made": (key,), "attached": (key,), "gone": ()}
    rows = {
        name: pods(desired, {POD: facts}, {key: 0} if slots[name] else {})["p"]
        for name, facts in stages.items()
    }
    assert {name: (row.is_measured, row.has_ended) for name, (row,) in rows.items()} == {
        "bound": (False, False),
        "made": (False, False),
        "attached": (True, False),
        "gone": (False, True),
    }
    assert rows["attached"][0].containers == ("main",)


@pytest.mark.parametrize(
    ("name", "uid"),
    [
        (f"pod{UID}", UID),
        (f"pod{STATIC}", STATIC),
        (f"kubepods-burstable-pod{UID_}.slice", UID),
        (f"kubepods-pod{STATIC}.slice", STATIC),
        (f"kubepods-besteffort-pod{UID_}.slice:cri-containerd:{CID}", UID),
        (f"pod{UID}x", None),
        ("podium", None),
        (CID, None),
        ("", None),
    ],
)
def test_a_pods_uid_is_read_from_the_name_of_its_directory(name: str, uid: str | None) -> None:
    assert pod_uid_of(name) == uid


@pytest.mark.parametrize("name", ["kubepods", "kubepods.slice", "burstable", "a-besteffort.slice"])
def test_directories_that_hold_pods_are_known_by_their_names(name: str) -> None:
    assert holds_pods(name)
    assert not holds_pods(f"{name}x")


def _tracker(root: Path, uid: str = UID) -> PodTracker:
    hierarchy = Hierarchy(str(root))
    finder = ContainerFinder(hierarchy, clock=Clock())
    return PodTracker(finder, hierarchy, Processes(), PodSelector(uid))


def _cgroup(path: Path, *pids: int) -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return path


@pytest.mark.parametrize(
    ("uid", "parent", "name"),
    [
        (UID, "kubepods/burstable", f"pod{UID}"),
        (UID, "kubepods.slice", f"kubepods-pod{UID_}.slice"),
        (STATIC, "kubepods/besteffort", f"pod{STATIC}"),
        (UID, "system.slice/containerd.service", f"kubepods-pod{UID_}.slice:cri-containerd:{CID}"),
    ],
)
def test_a_pod_is_pending_without_a_cgroup_and_has_its_id_once_it_is_made(
    tmp_path: Path, uid: str, parent: str, name: str
) -> None:
    _cgroup(tmp_path / parent)
    if ":" in name:  # the place is known by another container's directory there
        _cgroup(tmp_path / parent / f"kubepods-pod{OTHER.replace('-', '_')}.slice:cri-o:{CID}")
    tracker = _tracker(tmp_path, uid)
    bound = tracker.poll()
    assert (bound.state, bound.cgroup_ids) == (TargetState.PENDING, frozenset())
    made = _cgroup(tmp_path / parent / name)
    facts = tracker.poll()
    assert facts.state is TargetState.PENDING
    assert facts.cgroup_ids == {made.stat().st_ino}
    assert facts.cgroup_directories == {str(made)}


def test_a_pod_whose_cgroup_is_removed_is_gone_until_it_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / f"kubepods/pod{UID}"
    _cgroup(path)
    tracker = _tracker(tmp_path)
    tracker.poll()
    path.rename(tmp_path / "removed")
    assert tracker.poll().state is TargetState.GONE
    made = _cgroup(path)
    again = tracker.poll()
    assert again.state is TargetState.PENDING
    assert again.cgroup_ids == {made.stat().st_ino}


def test_of_any_number_of_cgroups_in_a_pod_the_upper_levels_are_listed(tmp_path: Path) -> None:
    pod = _cgroup(tmp_path / f"kubepods/pod{UID}")
    containers = [_cgroup(pod / f"{number:064x}") for number in range(3)]
    for number in range(2 * MAX_CGROUPS_OF_POD):
        _cgroup(containers[0] / str(number))
    # kernfs counts a directory in its parent's links; a file system of disks may not.
    facts = _tracker(tmp_path).poll()
    assert len(facts.cgroup_ids) <= MAX_CGROUPS_OF_POD
    assert {path.stat().st_ino for path in (pod, *containers)} <= facts.cgroup_ids


def test_the_process_of_a_runtime_is_not_yet_one_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = _cgroup(tmp_path / f"kubepods/pod{UID}")
    _cgroup(pod / CID, os.getpid())
    tracker = _tracker(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Processes, "is_runtime", lambda *_: True)
        facts = tracker.poll()
    assert (facts.state, facts.pids, facts.netns) == (TargetState.PENDING, (), frozenset())
    assert tracker.poll().pids == (os.getpid(),)


@pytest.mark.parametrize(
    ("name", "is_runtime"),
    [("runc:[2:INIT]", True), ("runc", True), ("crun", True), ("runcible", False), ("sh", False)],
)
def test_a_runtime_is_known_by_the_name_of_its_process(
    tmp_path: Path, name: str, is_runtime: bool
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text(f"{name}\n")
    assert Processes(tmp_path).is_runtime(7) is is_runtime


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
def test_a_pod_whose_directory_cannot_be_read_now_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = _cgroup(tmp_path / f"kubepods/pod{UID}")
    tracker = _tracker(tmp_path)
    before = tracker.poll()
    unhindered = os.stat

    def fails(asked: str, *args: object, **options: object) -> os.stat_result:
        if asked == str(path):
            raise OSError(code, os.strerror(code), asked)
        return unhindered(asked, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", fails)
        with pytest.raises(OSError, match=os.strerror(code)):
            tracker.poll()
    assert tracker.poll() == before
