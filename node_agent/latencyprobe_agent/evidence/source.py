"""The contract between the agent and what gathers evidence for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from latencyprobe_agent.evidence.namespaces import Namespace


class EvidenceSource(Protocol):
    """What has been counted since the last look. Never raises for what can't be read."""

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """What was counted in each, by inode number; the first look at one tells nothing."""

    def of_node(self) -> Mapping[str, int]:
        """What the node's softirqs and devices counted."""

    def keep(self, inodes: Iterable[int]) -> None:
        """Forget all other namespaces."""

    def close(self) -> None:
        """Close what is open."""
