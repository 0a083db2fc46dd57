"""The choice of the pods that agents report in full: about as many as a status lists.

Each node is asked for as many pods as it has among the cluster's worst, and one to spare while
there are few nodes. So an interval brings at most three times as many as are listed, also if every
pod of the cluster turns bad in it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latencyprobe.domain.report import StageReport, TargetReport
from latencyprobe.domain.score import score_of
from latencyprobe.domain.summary import NO_PODS, PodChoice
from latencyprobe.domain.verdict import TOTALS, Bottleneck, Verdict
from latencyprobe_operator.probes.summaries import NodeScore

# So many times the pods of a status may arrive in an interval.
_MOST_TIMES = 3
_NODES_TO_SPARE = 2
# A new score is a message to each node with a chosen pod. Scores vary by about a bucket of a
# histogram from one interval to the next.
_SCORE_RATIO = 1.1


@dataclass(frozen=True, slots=True)
class Top:
    """The worst pods of a cluster. `threshold`: the score of the last of them.

    It is 0 while the cluster has no more pods than that. `min_score`: the score that nodes are
    asked for, a little below the threshold.
    """

    threshold: int
    by_node: Mapping[str, int]
    pods: tuple[NodeScore, ...] = ()
    min_score: int = 0


def top_of(scores: Iterable[NodeScore], most: int, before: Top | None = None) -> Top:
    """Return the worst of these, at most this number; equal scores by UID.

    Nodes are asked for the same score as before, while it is a little below the threshold.
    """
    worst = tuple(heapq.nlargest(most, scores))
    threshold = worst[-1].place.score if worst and len(worst) == most else 0
    min_score = _min_score(threshold, before.min_score if before else 0)
    return Top(threshold, Counter(each.node for each in worst), worst, min_score)


def _min_score(threshold: int, before: int) -> int:
    if before <= threshold <= before * _SCORE_RATIO**2:
        return before
    return int(threshold / _SCORE_RATIO)


def top_of_rows(rows: Sequence[Mapping[str, Any]]) -> Top | None:
    """Return the worst pods by a status that an earlier operator wrote; None if it has none."""
    try:
        scores = [_score(row) for row in rows]
        nodes = Counter(str(row["node"]) for row in rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Top(min(scores), nodes, min_score=min(scores)) if scores else None


def choice_of(node: str, top: Top | None, *, pods: int, nodes: int, max_pods: int) -> PodChoice:
    """Return the pods that a node is to report in full.

    `pods`, `nodes`: their numbers in the cluster. `top`: None if no score is known yet.
    """
    if pods <= max_pods or nodes <= _MOST_TIMES:
        return PodChoice(max_pods)
    if top is None:
        return NO_PODS
    spare = 1 if nodes <= _NODES_TO_SPARE * max_pods else 0
    most = top.by_node.get(node, 0) + spare
    return PodChoice(most, top.min_score) if most else NO_PODS


def _score(row: Mapping[str, Any]) -> int:
    """Return the score of a pod from its row in a status."""
    stages = tuple(
        _stage(each["name"], int(each["p99Ns"])) for each in row["stages"] if each["name"] in TOTALS
    )
    verdict = Verdict(Bottleneck(row["verdict"]["bottleneck"]), 0, (), "")
    return score_of(TargetReport(stages, row["counters"], {}, verdict))


def _stage(name: str, p99_ns: int) -> StageReport:
    return StageReport(
        name=name,
        count=0,
        mean_ns=0,
        p50_ns=0,
        p90_ns=0,
        p99_ns=p99_ns,
        max_ns=0,
        share_percent=None,
        lost=0,
        unmatched=0,
        clamped=0,
        sampling_ratio=1.0,
    )
