"""Cgroups that targets waited for are found by their ids, with the pods in their paths."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe_agent.evidence import known_cgroups
from latencyprobe_agent.evidence.known_cgroups import MOST_NAMED, KnownCgroups, identity_of
from latencyprobe_agent.targets.cgroups import Hierarchy, subdirectories
from tests.unit.agent.owners import owned_by_a_user
from tests.unit.agent.scripted import Clock

UID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
SLICED = UID.replace("-", "_")
ID, STATIC = "0123456789abcdef" * 4, "0" * 32


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        ("/", ("", "")),
        ("/system.slice/ssh.service", ("", "")),
        (f"/kubepods/burstable/pod{UID}", (UID, "")),
        (f"/kubepods/pod{UID}/{ID}", (UID, ID)),
        (f"/kubepods/besteffort/pod{STATIC}/{ID}", (STATIC, ID)),
        (f"/kubepods/pod{UID}/{ID}/worker", (UID, ID)),
        (
            f"/kubepods.slice/kubepods-pod{SLICED}.slice/cri-containerd-{ID}.scope",
            (UID, ID),
        ),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-{ID}.scope/init", (UID, ID)),
        (
            f"/system.slice/containerd.service/kubepods-pod{SLICED}.slice:cri-containerd:{ID}",
            (UID, ID),
        ),
        (f"/docker/{ID}/kubelet/kubepods/pod{UID}/{ID}", (UID, ID)),
        # names that a container has made inside its own cgroup
        (f"/kubepods/pod{UID}/{ID}/kubepods/pod{OTHER}/{'f' * 64}", (UID, ID)),
        (f"/kubepods/pod{UID}/kubepods-pod{OTHER}.slice:x:{'f' * 64}", (UID, "f" * 64)),
        (f"/kubepods/pod{UID}x/{ID}", ("", "")),
    ],
)
def test_a_path_has_the_pod_and_the_container_of_the_kubelet(
    path: str, identity: tuple[str, str]
) -> None:
    assert identity_of(path) == identity


class Cgroups:
    """A hierarchy of directories, with a clock that the test turns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.known = KnownCgroups(Hierarchy(str(root)), self.clock)

    def make(self, path: str) -> int:
        """Make a cgroup; return its id."""
        directory = self.root / path.strip("/")
        directory.mkdir(parents=True)
        return os.stat(directory).st_ino

    def found(self, **waits_ns: int) -> list[str]:
        """Return the paths of those in these counters, which have `id_` before the id."""
        counters = {name.replace("id_", "waitedForCgroup."): ns for name, ns in waits_ns.items()}
        return [each.path for each in self.known.among(counters)]


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


def test_cgroups_are_found_by_their_ids_and_the_longest_waits_come_first(cgroups: Cgroups) -> None:
    pod = cgroups.make(f"/kubepods/pod{UID}/{ID}")
    unit = cgroups.make("/system.slice/ssh.service")
    root = os.stat(cgroups.root).st_ino
    cgroups.known.look_up([pod, unit, root, 4])

    counters = {f"waitedForCgroup.{pod}": 5, f"waitedForCgroup.{unit}": 9, "waitedForCgroup.4": 7}
    assert cgroups.known.among({**counters, "waitedForOthersNs": 99}) == (
        Cgroup(unit, path="/system.slice/ssh.service"),
        Cgroup(pod, pod_uid=UID, container_id=ID, path=f"/kubepods/pod{UID}/{ID}"),
    )
    assert cgroups.found(**{f"id_{root}": 1}) == ["/"]


@pytest.mark.parametrize(
    "pod",
    [
        f"/user.slice/user@1000.service/kubepods/pod{UID}",
        f"/user.slice/user@1000.service/pod{UID}",
        f"/user.slice/user@1000.service/kubepods-pod{SLICED}.slice:cri-containerd:{ID}",
    ],
)
def test_a_cgroup_that_a_user_has_made_is_no_pod(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch, pod: str
) -> None:
    made = cgroups.make(f"{pod}/{ID}")
    give = owned_by_a_user(cgroups.root, monkeypatch)
    give("user.slice/user@1000.service")
    cgroups.known.look_up([made])
    assert cgroups.known.among({f"waitedForCgroup.{made}": 5}) == (
        Cgroup(made, path=f"{pod}/{ID}"),
    )


def test_a_pod_whose_own_cgroup_is_a_users_is_known(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cgroups.make(f"/kubepods/pod{UID}/{ID}")
    give = owned_by_a_user(cgroups.root, monkeypatch)
    give(f"kubepods/pod{UID}", f"kubepods/pod{UID}/{ID}")
    cgroups.known.look_up([made])
    assert [each.pod_uid for each in cgroups.known.among({f"waitedForCgroup.{made}": 5})] == [UID]


def test_a_cgroup_that_is_gone_keeps_the_path_that_it_had(cgroups: Cgroups) -> None:
    job = cgroups.make("/job")
    cgroups.known.look_up([job])
    (cgroups.root / "job").rmdir()
    cgroups.clock.now += 60
    cgroups.known.look_up([job])

    assert cgroups.found(**{f"id_{job}": 1}) == ["/job"]


def test_the_hierarchy_is_walked_once_for_an_id_and_not_all_the_time(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    walk = Hierarchy.walk

    def counted(self: Hierarchy, *arguments: object) -> object:
        walks.append(arguments)
        return walk(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Hierarchy, "walk", counted)
    first = cgroups.make("/first")
    cgroups.known.look_up([first, 4])
    second = cgroups.make("/second")
    cgroups.known.look_up([second])
    assert cgroups.found(**{f"id_{second}": 1}) == []
    assert len(walks) == 1

    cgroups.clock.now += 60
    cgroups.known.look_up([first, second, 4])
    cgroups.clock.now += 60
    cgroups.known.look_up([first, second, 4])

    assert len(walks) == 2
    assert cgroups.found(**{f"id_{first}": 2, f"id_{second}": 1}) == ["/first", "/second"]


def test_the_number_of_known_cgroups_is_bounded(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_cgroups, "_MOST_KNOWN", 2)
    ids = [cgroups.make(f"/{name}") for name in "abc"]
    for each in ids:
        cgroups.known.look_up([each])
        cgroups.clock.now += 60

    assert cgroups.found(**{f"id_{each}": 1 for each in ids}) != []
    assert len(cgroups.known._known) == 2
    many = [cgroups.make(f"/many/{number}") for number in range(MOST_NAMED + 1)]
    monkeypatch.setattr(known_cgroups, "_MOST_KNOWN", 100)
    cgroups.known.look_up(many)
    assert len(cgroups.found(**{f"id_{each}": 1 for each in many})) == MOST_NAMED


def test_without_a_hierarchy_there_are_no_names() -> None:
    known = KnownCgroups(None)
    known.look_up([1])
    assert known.among({"waitedForCgroup.1": 5}) == ()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_look_up_that_fails_costs_no_reading_and_is_repeated(
    cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    upper, inner = cgroups.make("/a"), cgroups.make("/a/inner/most")

    def fails(directory: str, most: int | None = None) -> list[str]:
        if directory.endswith("/inner"):
            raise OSError(code, os.strerror(code), directory)
        return subdirectories(directory, most)

    with monkeypatch.context() as patched:
        patched.setattr("latencyprobe_agent.targets.cgroups.subdirectories", fails)
        cgroups.known.look_up([upper, inner])
    waits = {f"id_{upper}": 2, f"id_{inner}": 1}
    assert cgroups.found(**waits) == ["/a"]

    cgroups.clock.now += 60
    cgroups.known.look_up([upper, inner])
    assert cgroups.found(**waits) == ["/a", "/a/inner/most"]
