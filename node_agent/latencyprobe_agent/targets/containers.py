"""Containers: from pod UID and container ID to the cgroup's directory.

Kubelet and runtime put a container at one of these paths below the mount:

- driver cgroupfs: `kubepods/[burstable|besteffort/]pod<uid>/<cid>` (Guaranteed has no level)
- driver systemd: `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/
  cri-containerd-<cid>.scope` (CRI-O: `crio-`, Docker: `docker-`)
- kubelet with systemd but containerd without: a single directory called
  `kubepods-burstable-pod<uid with _>.slice:cri-containerd:<cid>`, in that of containerd's service

and each of them perhaps below others: kind, k3s, Docker in Docker. So a survey finds the
directories that hold pods (*pod parents*), and then a container is searched in those, by name.
"""

from __future__ import annotations

import logging
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
from latencyprobe_agent.targets.survey import MOST_SURVEYED, PodParents, Survey

log = logging.getLogger(__name__)

_INCOMPLETE = f"only the upper {MOST_SURVEYED} cgroups are searched for kubepods directories"
# The maximum age of a survey, with known pod parents and without.
_SURVEY_AGE_S = 5.0
_EMPTY_SURVEY_AGE_S = 1.0
_POD_NAME = re.compile(
    r"(?:.+-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice(?::[^:]+:[0-9a-f]{64})?)?"
)
_RUNTIME_PREFIXES = ("cri-containerd", "crio", "docker", "libpod")
_QOS_INFIXES = ("", "-burstable", "-besteffort")


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
        self._parents = PodParents()

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
        if self._parents.joined:
            joined = re.compile(rf".*-pod{_with_underscores(pod_uid)}\.slice:[^:]+:[0-9a-f]{{64}}")
            found += [
                path
                for parent in self._parents.joined
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
        return (*self._parents.pods, *self._parents.joined)

    def describe(self) -> str:
        """Describe the searched directories for people."""
        message = f"no kubepods directory below {self._hierarchy.root}"
        if self.pod_parents:
            message = f"searched in {self._listed(self.pod_parents)}"
        if self._parents.ignored:
            message += f"; root does not own {self._listed(self._parents.ignored)}"
        return message if self._parents.is_complete else f"{message}; {_INCOMPLETE}"

    def _listed(self, directories: tuple[str, ...]) -> str:
        """Return the first few of these directories, below the mount."""
        some = ", ".join(map(self._hierarchy.relative, directories[:4]))
        return some + (" …" if len(directories) > 4 else "")

    def _candidates(self, target: ContainerSelector) -> Iterator[str]:
        for pod in self._pod_directories(target.pod_uid):
            if not is_directory(pod):
                continue
            for name in container_names(target.container_id):
                yield f"{pod}/{name}"
        for parent in self._parents.joined:
            for name in joined_names(target.pod_uid, target.container_id):
                yield f"{parent}/{name}"

    def _pod_directories(self, pod_uid: str) -> Iterator[str]:
        for parent in self._parents.pods:
            for name in pod_names(os.path.basename(parent), pod_uid):
                yield f"{parent}/{name}"

    def _is_survey_due(self) -> bool:
        if self._surveyed_at is None:
            return True
        age_s = self._clock() - self._surveyed_at
        return age_s >= (_SURVEY_AGE_S if self.pod_parents else _EMPTY_SURVEY_AGE_S)

    def _survey(self) -> None:
        # Should it fail, the next search surveys again; until then those of before are valid.
        self._surveyed_at = None
        before, self._parents = self._parents, Survey(self._hierarchy).run()
        self._surveyed_at = self._clock()
        if before.is_complete and not self._parents.is_complete:
            log.warning("pods may be missed below %s: %s", self._hierarchy.root, _INCOMPLETE)


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
