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
    the name of a pod parent and an owner who is not trusted.
    """

    pods: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


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
        while unvisited:
            directory, depth = unvisited.popleft()
            others = self._search(directory)
            if depth < _MAX_DEPTH:
                unvisited.extend((path, depth + 1) for path in others)
        return PodParents(tuple(self._pods), tuple(self._joined), tuple(self._ignored))

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
        if not self._is_trusted(kubepods):
            self._ignored.append(kubepods)
            return
        self._pods.append(kubepods)
        for child in subdirectories(kubepods):
            if _QOS.fullmatch(os.path.basename(child)):
                (self._pods if self._is_trusted(child) else self._ignored).append(child)

    def _trusted_subdirectories(self, directory: str) -> list[str]:
        return subdirectories(directory) if self._is_trusted(directory) else []

    def _is_trusted(self, directory: str) -> bool:
        status = status_of(directory)
        return status is not None and status.st_uid in self._owners
