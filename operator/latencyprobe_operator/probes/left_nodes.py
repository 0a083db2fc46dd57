"""The nodes that a probe's last pods have left: how long their agents are asked to report on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from latencyprobe_operator.dns_names import is_subdomain
from latencyprobe_operator.probes.summaries import LATE_INTERVALS, NodeSummaries


def pods_of_rows(rows: Sequence[Any]) -> Mapping[str, Collection[str]]:
    """Return the names of the pods in a status that an earlier operator wrote, by their nodes."""
    pods: dict[str, set[str]] = {}
    for row in rows:
        node, name = (row.get("node"), row.get("name")) if isinstance(row, dict) else (None, None)
        if isinstance(node, str) and is_subdomain(node):
            pods.setdefault(node, set()).update([name] if isinstance(name, str) else [])
    return pods


class LeftNodes:
    """The times since when nodes are left. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def over(
        self,
        left: Collection[str],
        summaries: NodeSummaries,
        *,
        at: float,
        window_s: float,
        interval_s: float,
    ) -> set[str]:
        """Return those of these nodes that have nothing more to report.

        The window of the pods has passed, as a summary that came later says; or no agent answers.
        """
        self._since = {node: self._since.get(node, at) for node in left}
        longest_s = window_s + LATE_INTERVALS * interval_s
        return {
            node
            for node, since in self._since.items()
            if summaries.is_empty_since(node, since) or at - since > longest_s
        }
