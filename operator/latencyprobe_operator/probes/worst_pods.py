"""The worst pods of one probe: chosen by the scores of all nodes, and fetched from their agents."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from latencyprobe.domain.summary import PodChoice
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.probes.choices import NO_TOP, Top, choice_of, top_of, top_of_rows
from latencyprobe_operator.probes.summaries import NodeScore, NodeSummaries

WantInFull = Callable[[str, str, PodChoice, bool], None]
"""As `Fleet.want_in_full`: the node, the probe's UID, the choice, and if it is sent at once."""


class WorstPods:
    """The pods that a status should list, and the choices that bring them in full."""

    def __init__(
        self,
        probe_uid: str,
        *,
        desired: DesiredStates,
        want_in_full: WantInFull,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Choose by the rows of an earlier operator's status, as long as no score is known."""
        self.max_pods = 0
        self._probe_uid = probe_uid
        self._desired = desired
        self._want_in_full = want_in_full
        self._top: Top | None = top_of_rows(rows)
        self._measured: int | None = None
        """The number of measured pods, ended ones included; None before the first choice."""
        self._nodes: frozenset[str] = frozenset()

    def choice(self, node: str) -> PodChoice:
        """Return the pods that this node is to report in full, as of now."""
        left = self._desired.left_count(self._probe_uid)
        return choice_of(
            node,
            self._top,
            pods=self._most_pods(left),
            nodes=self._desired.nodes_of(self._probe_uid) + left,
            max_pods=self.max_pods,
        )

    def _most_pods(self, left: int) -> int:
        """Return the number of pods that agents have figures of."""
        if self._measured is None and left:
            # It is not known how many have ended there.
            return self.max_pods + 1
        return max(len(self._desired.pods_of(self._probe_uid)), self._measured or 0)

    async def choose(self, summaries: NodeSummaries, nodes: Collection[str]) -> None:
        """Choose by the newest scores, and have these nodes report accordingly.

        `nodes`: those with pods, and those that the last pods have left. Other tasks go on between
        its steps.
        """
        worst: list[NodeScore] = []
        for scores in summaries.scores():
            worst = heapq.nlargest(self.max_pods, [*worst, *scores])
            await asyncio.sleep(0)
        before = self._top or NO_TOP
        self._top = top_of(worst, self.max_pods, before, nodes, summaries.skewed)
        self._measured = summaries.measured
        self._nodes = frozenset(nodes)
        lacking = set(self._lacking(summaries))
        for node in nodes:
            self._want_in_full(node, self._probe_uid, self.choice(node), node in lacking)

    async def fetch(
        self, summaries: NodeSummaries, arrived: asyncio.Event, *, timeout_s: float
    ) -> None:
        """Wait until the chosen pods are there in full, but no longer than this."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(self._lacking(summaries)):
                    arrived.clear()
                    await arrived.wait()
        except TimeoutError:
            return

    def _lacking(self, summaries: NodeSummaries) -> Iterator[str]:
        """Yield the nodes whose chosen pods are not all there in full."""
        chosen = self._top.pods if self._top else ()
        for each in chosen:
            # Others have nothing to measure, and do not answer.
            if each.node in self._nodes and summaries.lacks(each.node, each.place.pod_uid):
                yield each.node
