"""The contract between the agent and the source of its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from latencyprobe_agent.evidence.namespaces import Namespace


class EvidenceSource(Protocol):
    """The growth of counters since the last poll. Counters that cannot be read are omitted."""

    def of_namespaces(self, namespaces: Iterable[Namespace]) -> Mapping[int, Mapping[str, int]]:
        """Return the growth in each, by inode number; none at the first poll of a namespace."""

    def of_node(self) -> Mapping[str, int]:
        """Return the growth of the node's softirqs' and devices' counters."""

    def keep(self, inodes: Iterable[int]) -> None:
        """Forget all other namespaces."""

    def close(self) -> None:
        """Close all files and sockets."""
