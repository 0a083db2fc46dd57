"""The directories that hold pods are found where the kubelet makes them, and nowhere else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from latencyprobe_agent.targets import survey
from latencyprobe_agent.targets.cgroups import Hierarchy
from latencyprobe_agent.targets.containers import ContainerFinder
from latencyprobe_agent.targets.survey import Survey
from tests.unit.agent.owners import Give, owned_by_a_user
from tests.unit.agent.scripted import Clock

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
UID_ = UID.replace("-", "_")
CID = "ab" * 32
USER = "user.slice/user@1000.service"


@pytest.fixture
def give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """Give directories to a user."""
    return owned_by_a_user(tmp_path, monkeypatch)


def _finder(root: Path) -> ContainerFinder:
    return ContainerFinder(Hierarchy(str(root)), clock=Clock())


@pytest.mark.parametrize(
    "pod",
    [
        f"kubepods/pod{UID}",
        f"kubepods/burstable/pod{UID}",
        f"kubepods-besteffort-pod{UID_}.slice:cri-containerd:{CID}",
        f"app.slice/kubepods.slice/kubepods-pod{UID_}.slice",
    ],
)
def test_a_user_who_has_a_cgroup_cannot_make_up_a_pod(tmp_path: Path, give: Give, pod: str) -> None:
    true_pod = tmp_path / f"kubepods/pod{UID}"
    for path in (true_pod, tmp_path / USER / pod):
        path.mkdir(parents=True)
    below = (tmp_path / USER).rglob("*/")
    give(USER, *(str(path) for path in below))
    assert _finder(tmp_path).find_pod(UID) == [str(true_pod)]


@pytest.mark.parametrize("parent", ["kubepods", "kubepods/burstable"])
def test_a_pod_parent_of_another_owner_is_ignored_and_named(
    tmp_path: Path, give: Give, parent: str
) -> None:
    (tmp_path / parent / f"pod{UID}").mkdir(parents=True)
    give(parent)
    finder = _finder(tmp_path)
    assert finder.find_pod(UID) == []
    assert finder.describe().endswith(f"; root does not own /{parent}")


def test_a_pod_may_be_given_to_a_user(tmp_path: Path, give: Give) -> None:
    pod = tmp_path / f"kubepods/burstable/pod{UID}"
    pod.mkdir(parents=True)
    give(f"kubepods/burstable/pod{UID}")
    assert _finder(tmp_path).find_pod(UID) == [str(pod)]


def test_in_a_user_namespace_the_owner_of_all_cgroups_may_make_pods(
    tmp_path: Path, give: Give
) -> None:
    pod = tmp_path / f"kubepods/pod{UID}"
    pod.mkdir(parents=True)
    give(".", "kubepods")
    assert _finder(tmp_path).find_pod(UID) == [str(pod)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were read."""
    found = []
    listed = os.scandir

    def noted(path: str) -> object:
        found.append(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", noted)
    return found


def test_of_any_number_of_cgroups_the_upper_ones_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(survey, "MOST_SURVEYED", 20)
    for number in range(30):
        (tmp_path / f"machine.slice/{number}/inner").mkdir(parents=True)
    upper = tmp_path / "system.slice/kubepods"
    for parent in (upper, tmp_path / "machine.slice/0/inner/most/kubepods"):
        parent.mkdir(parents=True)
    parents = Survey(Hierarchy(str(tmp_path))).run()
    assert parents.pods == (str(upper),)
    assert not parents.is_complete
    assert len(read) <= 21


def test_a_hierarchy_of_few_cgroups_is_searched_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MOST_SURVEYED", 3)
    (tmp_path / "system.slice/k3s.service/kubepods").mkdir(parents=True)
    parents = Survey(Hierarchy(str(tmp_path))).run()
    assert parents.is_complete
    assert len(parents.pods) == 1


def test_an_incomplete_survey_is_logged_once_and_named_while_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(survey, "MOST_SURVEYED", 3)
    for name in "abcde":
        (tmp_path / name).mkdir()
    clock = Clock()
    finder = ContainerFinder(Hierarchy(str(tmp_path)), clock=clock)
    for _ in range(3):
        finder.find_pod(UID)
        clock.now += 60
    assert "are searched for kubepods directories" in finder.describe()
    assert len([one for one in caplog.records if "pods may be missed" in one.message]) == 1
    for name in "abcde":
        (tmp_path / name).rmdir()
    finder.find_pod(UID)
    assert "are searched" not in finder.describe()


def test_cgroups_with_none_in_them_are_not_read(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "system.slice/ssh.service").mkdir(parents=True)
    Survey(Hierarchy(str(tmp_path))).run()
    # A file system of disks may not count a directory in its parent's links.
    has_counts = tmp_path.stat().st_nlink == 3
    assert read == [str(tmp_path), str(tmp_path / "system.slice")] or not has_counts


def test_a_directory_that_a_user_has_closed_hinders_no_survey(
    tmp_path: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("kubepods", USER):
        (tmp_path / path).mkdir(parents=True)
    give(USER)
    listed = os.scandir

    def refused(path: str) -> object:
        if path.startswith(str(tmp_path / USER)):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refused)
        parents = Survey(Hierarchy(str(tmp_path))).run()
    assert parents.pods == (str(tmp_path / "kubepods"),)
