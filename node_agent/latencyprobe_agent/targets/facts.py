"""The facts on one target at one time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from latencyprobe.domain.targets import TargetState


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """The kernel's identifiers of a target.

    `cgroup` is the path below the mount of the v2 hierarchy. `pids` are the processes of the target
    for people; `tgids` are those that the kernel matches. `netns` are the inode numbers of the
    namespaces of the target's processes; `netns_wide` those of namespaces that are whole targets.
    `cgroup_directories` are those of `cgroup_ids`. `is_partial`: a part of its packets is lost, for
    the reason in `message`.
    """

    state: TargetState
    message: str = ""
    cgroup: str = ""
    pids: tuple[int, ...] = ()
    cgroup_ids: frozenset[int] = frozenset()
    cgroup_directories: frozenset[str] = frozenset()
    tgids: frozenset[int] = frozenset()
    netns: frozenset[int] = frozenset()
    netns_wide: frozenset[int] = frozenset()
    is_partial: bool = False

    def partial(self, reason: str) -> TargetFacts:
        """Return the facts of the target while a part of its packets is lost."""
        message = f"{self.message}; {reason}" if self.message else reason
        return replace(self, message=message, is_partial=True)

    def gone(self, message: str) -> TargetFacts:
        """Return the facts of the target after its end: no processes, nothing to match."""
        return TargetFacts(TargetState.GONE, message, cgroup=self.cgroup)


def pending(message: str) -> TargetFacts:
    """Return the facts of a target that does not exist yet."""
    return TargetFacts(TargetState.PENDING, message)


def failed(message: str) -> TargetFacts:
    """Return the facts of a target that cannot be measured."""
    return TargetFacts(TargetState.FAILED, message)


class Tracker(Protocol):
    """A tracker of one target. A poll is cheap if nothing changed."""

    def poll(self) -> TargetFacts:
        """Return the current facts of the target."""
