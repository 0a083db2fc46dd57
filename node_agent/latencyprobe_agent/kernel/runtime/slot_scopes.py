"""The cgroups and network namespaces that targets are limited to, where they are."""

from __future__ import annotations

from collections.abc import Mapping

from latencyprobe_agent.kernel.contract import SlotSpec


def is_by_process(slots: Mapping[int, SlotSpec]) -> bool:
    """Return True if some target is chosen by process."""
    return any(spec.tgids for spec in slots.values())


def cgroup_directories(slots: Mapping[int, SlotSpec]) -> frozenset[str] | None:
    """Return the directories of all targets; None if some target is more than cgroups."""
    specs = slots.values()
    if any(
        spec.tgids or spec.netns_wide or len(spec.cgroup_directories) != len(spec.cgroup_ids)
        for spec in specs
    ):
        return None
    return frozenset().union(*(spec.cgroup_directories for spec in specs))


def begins_anywhere(slots: Mapping[int, SlotSpec]) -> bool:
    """Return True if sockets of some target may be made in any network namespace."""
    return any(spec.any_netns for spec in slots.values())


def pod_namespaces(
    slots: Mapping[int, SlotSpec], host_netns: int
) -> Mapping[int, frozenset[str]] | None:
    """Return the namespaces of all targets, with the cgroups of those in it.

    None if some target is chosen by process, or may be in the host's namespace.
    """
    found: dict[int, frozenset[str]] = {}
    for spec in slots.values():
        for inum in spec.netns | spec.netns_wide:
            found[inum] = found.get(inum, frozenset()) | spec.cgroup_directories
    if host_netns in found or is_by_process(slots) or begins_anywhere(slots):
        return None
    return found or None
