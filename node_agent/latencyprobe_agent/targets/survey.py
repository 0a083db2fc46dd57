"""The survey of the hierarchy: it finds the directories that hold pods (*pod parents*).

The kubelet runs as root, so root owns the pod parents and all directories above them. A user who
has a cgroup, such as `user@1000.service`, may make others of any name and in any number below it.
So a directory of another owner is neither searched nor a pod parent. Below a pod parent the owner
does not matter: a runtime may give a container's cgroup to a user.
"""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass

from latencyprobe_agent.targets.cgroups import Hierarchy, status_of, subdirectories

# Outside pods. A survey of so many takes some 70 ms. The upper levels come first.
MOST_SURVEYED = 4096
_MAX_DEPTH = 6
_KUBEPODS = re.compile(r"(?:.+-)?kubepods(?:\.slice)?")
_QOS = re.compile(r"(?:.+-)?(?:burstable|besteffort)(?:\.slice)?")
_JOINED_NAME = re.compile(r".*kubepods.*\.slice:[^:]+:[0-9a-f]{64}")


def holds_pods(name: str) -> bool:
    """Return True if a directory of this name may hold pods."""
    return bool(_KUBEPODS.fullmatch(name) or _QOS.fullmatch(name))


@dataclass(frozen=True, slots=True)
class PodParents:
    """The directories in which pods, or their containers, are made.

    `joined`: those in which a pod and its container are a single directory. `ignored`: those with
    the name of a pod parent and an owner who is not trusted. `is_complete`: False if there were
    more directories than a survey reads.
    """

    pods: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    is_complete: bool = True


class Survey:
    """A single search of the hierarchy. It does not search inside pods."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._root = hierarchy.root
        self._owners = hierarchy.trusted_owners()
        self._pods: list[str] = []
        self._joined: list[str] = []
        self._ignored: list[str] = []

    def run(self) -> PodParents:
        """Find the pod parents."""
        unvisited = deque([(self._root, 1)])
        for _ in range(MOST_SURVEYED):
            if not unvisited:
                break
            directory, depth = unvisited.popleft()
            others = self._search(directory)
            if depth < _MAX_DEPTH:
                unvisited.extend((path, depth + 1) for path in others)
        return PodParents(
            tuple(self._pods),
            tuple(self._joined),
            tuple(self._ignored),
            is_complete=not unvisited,
        )

    def _search(self, directory: str) -> list[str]:
        """Add the pod parents in a directory; return the other directories in it."""
        others = []
        for path in self._trusted_subdirectories(directory):
            name = os.path.basename(path)
            if _KUBEPODS.fullmatch(name):
                self._add(path)
            elif not _JOINED_NAME.fullmatch(name):
                others.append(path)
            elif directory not in self._joined:
                self._joined.append(directory)
        return others

    def _add(self, kubepods: str) -> None:
        """Add a directory that is a pod parent by its name, and those of the QoS classes in it."""
        if self._add_one(kubepods):
            for child in subdirectories(kubepods):
                if _QOS.fullmatch(os.path.basename(child)):
                    self._add_one(child)

    def _add_one(self, parent: str) -> bool:
        status = status_of(parent)
        if status is None:
            return False
        is_trusted = self._is_trusted(status)
        (self._pods if is_trusted else self._ignored).append(parent)
        return is_trusted

    def _trusted_subdirectories(self, directory: str) -> list[str]:
        status = status_of(directory)
        # The link count of a kernfs directory is 2 and one for each directory in it.
        if status is None or status.st_nlink == 2 or not self._is_trusted(status):
            return []
        return subdirectories(directory)

    def _is_trusted(self, status: os.stat_result) -> bool:
        return status.st_uid in self._owners
