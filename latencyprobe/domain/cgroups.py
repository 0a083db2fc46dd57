"""Cgroups of the node that a target's threads waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

from latencyprobe.domain.serialisation import written


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup, by its id. The other fields are empty if they are not known.

    `name`: for people. `pod_uid`, `container_id`: those in the names of a pod's directories.
    `path`: below the mount of the hierarchy.
    """

    id: int
    name: str = field(default="", metadata=written(absent_if_empty=True))
    pod_uid: str = field(default="", metadata=written(omitted=True))
    container_id: str = field(default="", metadata=written(omitted=True))
    path: str = field(default="", metadata=written(omitted=True))


def cgroup_text(cgroup_id: int | str) -> str:
    """Return the identity of a cgroup as a text, as a verdict has it."""
    return f"cgroup {cgroup_id}"
