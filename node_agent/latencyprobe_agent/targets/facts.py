"""What is known of one target at one time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from latencyprobe.domain.targets import TargetState


@dataclass(frozen=True, slots=True)
class Facts:
    """By what the kernel knows a target.

    `cgroup` is the path below the mount of the v2 hierarchy; `pids` are the processes of the target
    for people to see; `tgids` are those that the kernel is to match. `netns` are the inode numbers
    of the namespaces that the target's processes live in, `netns_wide` of those that are targets as
    a whole.
    """

    state: TargetState
    message: str = ""
    cgroup: str = ""
    pids: tuple[int, ...] = ()
    cgroup_ids: frozenset[int] = frozenset()
    tgids: frozenset[int] = frozenset()
    netns: frozenset[int] = frozenset()
    netns_wide: frozenset[int] = frozenset()

    def gone(self, message: str) -> Facts:
        """These facts once the target has vanished: no process, nothing to match."""
        return Facts(TargetState.GONE, message, cgroup=self.cgroup)


def pending(message: str) -> Facts:
    """A target that is not there yet."""
    return Facts(TargetState.PENDING, message)


def failed(message: str) -> Facts:
    """A target that can't be measured."""
    return Facts(TargetState.FAILED, message)


class Tracker(Protocol):
    """Follows one target. Each look is cheap where nothing changed."""

    def look(self) -> Facts:
        """What is known of the target now."""
