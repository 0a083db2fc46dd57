"""Containers: from pod UID and container ID to the cgroup's directory.

Kubelet and runtime put a container at one of these paths below the mount:

- driver cgroupfs: `kubepods/[burstable|besteffort/]pod<uid>/<cid>` (Guaranteed has no level)
- driver systemd: `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/
  cri-containerd-<cid>.scope` (CRI-O: `crio-`, Docker: `docker-`)
- kubelet with systemd but containerd without: a single directory called
  `kubepods-burstable-pod<uid with _>.slice:cri-containerd:<cid>`, in that of containerd's service

and each of them perhaps below others: kind, k3s, Docker in Docker. So we search once for the
directories that hold pods (*pod parents*), and then for a container in those, by name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator

from latencyprobe_agent.desired import ContainerSelector
from latencyprobe_agent.targets.cgroups import (
    MAX_CGROUPS_OF_POD,
    Hierarchy,
    SubtreeTracker,
    is_directory,
    subdirectories,
)
from latencyprobe_agent.targets.facts import TargetFacts, failed, pending
from latencyprobe_agent.targets.processes import Processes

_MAX_DEPTH = 6
# The maximum age of a survey, with known pod parents and without.
_SURVEY_AGE_S = 5.0
_EMPTY_SURVEY_AGE_S = 1.0
_KUBEPODS = re.compile(r"(?:.+-)?kubepods(?:\.slice)?")
_QOS = re.compile(r"(?:.+-)?(?:burstable|besteffort)(?:\.slice)?")
_JOINED_NAME = re.compile(r".*kubepods.*\.slice:[^:]+:[0-9a-f]{64}")
_POD_NAME = re.compile(
    r"(?:.+-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice(?::[^:]+:[0-9a-f]{64})?)?"
)
_RUNTIME_PREFIXES = ("cri-containerd", "crio", "docker", "libpod")
_QOS_INFIXES = ("", "-burstable", "-besteffort")
_Parents = tuple[list[str], list[str]]


def pod_names(parent: str, pod_uid: str) -> Iterator[str]:
    """Yield the possible names of a pod's directory in this pod parent."""
    yield f"pod{pod_uid}"
    if parent.endswith(".slice"):
        yield f"{parent.removesuffix('.slice')}-pod{_with_underscores(pod_uid)}.slice"


def container_names(container_id: str) -> Iterator[str]:
    """Yield the possible names of a container's directory in that of its pod."""
    yield container_id
    for prefix in _RUNTIME_PREFIXES:
        yield f"{prefix}-{container_id}.scope"
        yield f"{prefix}-{container_id}"


def joined_names(pod_uid: str, container_id: str) -> Iterator[str]:
    """Yield the possible names of a single directory for pod and container."""
    for infix in _QOS_INFIXES:
        for prefix in _RUNTIME_PREFIXES:
            yield f"kubepods{infix}-pod{_with_underscores(pod_uid)}.slice:{prefix}:{container_id}"


def pod_uid_of(name: str) -> str | None:
    """Return the UID of the pod in a directory's name; None for any other name."""
    found = _POD_NAME.fullmatch(name)
    return found["uid"].replace("_", "-") if found else None


def holds_pods(name: str) -> bool:
    """Return True if a directory of this name may hold pods."""
    return bool(_KUBEPODS.fullmatch(name) or _QOS.fullmatch(name))


def _with_underscores(pod_uid: str) -> str:
    """Replace dashes: in a slice's name a dash is a level of the tree."""
    return pod_uid.replace("-", "_")


class ContainerFinder:
    """A finder of containers' directories. They share one survey of the hierarchy."""

    def __init__(
        self, hierarchy: Hierarchy, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hierarchy = hierarchy
        self._clock = clock
        self._surveyed_at: float | None = None
        self._pod_parents: list[str] = []
        self._joined_parents: list[str] = []

    def find(self, target: ContainerSelector) -> str | None:
        """Return the container's directory; None if it does not exist (yet)."""
        if self._is_survey_due():
            self._survey()
        return next((path for path in self._candidates(target) if is_directory(path)), None)

    def find_pod(self, pod_uid: str) -> list[str]:
        """Return the pod's directory; several where each container has one of its own."""
        if self._is_survey_due():
            self._survey()
        found = [path for path in self._pod_directories(pod_uid) if is_directory(path)]
        if self._joined_parents:
            joined = re.compile(rf".*-pod{_with_underscores(pod_uid)}\.slice:[^:]+:[0-9a-f]{{64}}")
            found += [
                path
                for parent in self._joined_parents
                for path in subdirectories(parent)
                if joined.fullmatch(os.path.basename(path))
            ]
        return found

    def survey_again(self) -> None:
        """Have the next search survey the hierarchy."""
        self._surveyed_at = None

    @property
    def pod_parents(self) -> tuple[str, ...]:
        """The directories in which pods, or their containers, are made."""
        return (*self._pod_parents, *self._joined_parents)

    def describe(self) -> str:
        """Describe the searched directories for people."""
        parents = [self._hierarchy.relative(path) for path in self._pod_parents]
        if not parents and not self._joined_parents:
            return f"no kubepods directory below {self._hierarchy.root}"
        parents += [self._hierarchy.relative(path) for path in self._joined_parents]
        return "searched in " + ", ".join(parents[:4]) + (" …" if len(parents) > 4 else "")

    def _candidates(self, target: ContainerSelector) -> Iterator[str]:
        for pod in self._pod_directories(target.pod_uid):
            if not is_directory(pod):
                continue
            for name in container_names(target.container_id):
                yield f"{pod}/{name}"
        for parent in self._joined_parents:
            for name in joined_names(target.pod_uid, target.container_id):
                yield f"{parent}/{name}"

    def _pod_directories(self, pod_uid: str) -> Iterator[str]:
        for parent in self._pod_parents:
            for name in pod_names(os.path.basename(parent), pod_uid):
                yield f"{parent}/{name}"

    def _is_survey_due(self) -> bool:
        if self._surveyed_at is None:
            return True
        found = self._pod_parents or self._joined_parents
        age_s = self._clock() - self._surveyed_at
        return age_s >= (_SURVEY_AGE_S if found else _EMPTY_SURVEY_AGE_S)

    def _survey(self) -> None:
        """Find the directories that hold pods, without searching inside pods."""
        # Should it fail, the next search surveys again; until then those of before are valid.
        self._surveyed_at = None
        parents: _Parents = [], []
        level = [self._hierarchy.root]
        for _ in range(_MAX_DEPTH):
            level = [path for directory in level for path in self._survey_one(directory, *parents)]
        self._pod_parents, self._joined_parents = parents
        self._surveyed_at = self._clock()

    @staticmethod
    def _survey_one(
        directory: str, pod_parents: list[str], joined_parents: list[str]
    ) -> Iterator[str]:
        """Add the pod parents in a directory; yield the other directories in it."""
        for path in subdirectories(directory):
            name = os.path.basename(path)
            if _KUBEPODS.fullmatch(name):
                pod_parents.append(path)
                pod_parents += [
                    child
                    for child in subdirectories(path)
                    if _QOS.fullmatch(os.path.basename(child))
                ]
            elif _JOINED_NAME.fullmatch(name):
                if directory not in joined_parents:
                    joined_parents.append(directory)
            else:
                yield path


class ContainerTracker:
    """A tracker of a container."""

    def __init__(
        self,
        finder: ContainerFinder | None,
        hierarchy: Hierarchy | None,
        processes: Processes,
        target: ContainerSelector,
    ) -> None:
        self._finder = finder
        self._hierarchy = hierarchy
        self._processes = processes
        self._target = target
        self._subtree: SubtreeTracker | None = None

    def poll(self) -> TargetFacts:
        """Return the current facts of the container. GONE is final, since its ID is unique."""
        if self._finder is None or self._hierarchy is None:
            return failed(
                "cannot distinguish containers: no cgroup v2 hierarchy is mounted, or none below "
                "--cgroup-root"
            )
        if self._subtree is None:
            directory = self._finder.find(self._target)
            if directory is None:
                return pending(
                    f"the container's cgroup does not exist yet ({self._finder.describe()})"
                )
            self._subtree = SubtreeTracker(
                self._hierarchy, self._processes, directory, most_cgroups=MAX_CGROUPS_OF_POD
            )
        return self._subtree.poll()
