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


@dataclass(frozen=True, slots=True)
class Top:
    """The worst pods of a cluster. `threshold`: the score of the last of them.

    It is 0 while the cluster has no more pods than that.
    """

    threshold: int
    by_node: Mapping[str, int]
    pods: tuple[NodeScore, ...] = ()


def top_of(scores: Iterable[NodeScore], most: int) -> Top:
    """Return the worst of these, at most this number; equal scores by UID."""
    worst = tuple(heapq.nlargest(most, scores, key=_order))
    threshold = worst[-1].place.score if worst and len(worst) == most else 0
    return Top(threshold, Counter(each.node for each in worst), worst)


def _order(each: NodeScore) -> tuple[int, str, str]:
    """Return the sort key: tuples are compared several times as fast as scores."""
    return each.place.score, each.place.pod_uid, each.node


def top_of_rows(rows: Sequence[Mapping[str, Any]]) -> Top | None:
    """Return the worst pods by a status that an earlier operator wrote; None if it has none."""
    try:
        scores = [_score(row) for row in rows]
        nodes = Counter(str(row["node"]) for row in rows)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return Top(min(scores), nodes) if scores else None


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
    return PodChoice(most, top.threshold) if most else NO_PODS


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
