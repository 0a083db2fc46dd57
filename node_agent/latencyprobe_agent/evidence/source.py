"""The contract between the agent and the source of its evidence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from latencyprobe_agent.desired import Selector
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.targets.facts import TargetFacts


class EvidenceSource(Protocol):
    """The growth of counters since the last poll. Counters that cannot be read are omitted."""

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """Return the growth in each, by inode number; none at the first poll of a namespace."""

    def of_cgroups(
        self, targets: Mapping[Selector, TargetFacts]
    ) -> Mapping[Selector, Mapping[str, int]]:
        """Return the growth of each target's cgroups; none at the first poll of a target."""

    def of_node(self) -> Mapping[str, int]:
        """Return the growth of the counters of the node's softirqs, devices and CPUs."""

    def keep(self, homes: Collection[int | Selector]) -> None:
        """Forget all other namespaces and targets."""

    def close(self) -> None:
        """Close all files and sockets."""
