"""The choice of the pods that agents report in full: about as many as a status lists.

Each node is asked for as many pods as it has among the cluster's worst, and one to spare while
there are few nodes. A node that had more of them before is still asked for as many. So an interval
brings at most three times as many as are listed, also if every pod of the cluster turns bad in it.
A node that pods have left counts as one with pods: it has those that have ended.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.report import StageReport, TargetReport
from latencyprobe.domain.score import score_of
from latencyprobe.domain.summary import NO_PODS, PodChoice
from latencyprobe.domain.verdict import Verdict
from latencyprobe.domain.waits import TOTALS
from latencyprobe_operator.probes.summaries import NodeScore

# So many times the pods of a status may arrive in an interval.
_MOST_TIMES = 3
_NODES_TO_SPARE = 2
# A new limit is a message to each node with a chosen pod. Scores vary by about a bucket of a
# histogram from one interval to the next.
_SCORE_RATIO = 1.1


@dataclass(frozen=True, slots=True)
class Top:
    """The worst pods of a cluster. `threshold`: the score of the last of them.

    It is 0 while the cluster has no more pods than that. `min_score`: the score that nodes are
    asked for, a little below the threshold. `asked`: the numbers of pods that nodes are asked for.
    `skewed`: the nodes whose agents make scores of another version.
    """

    threshold: int
    by_node: Mapping[str, int]
    pods: tuple[NodeScore, ...] = ()
    min_score: int = 0
    asked: Mapping[str, int] = field(default_factory=dict)
    skewed: Collection[str] = ()


NO_TOP = Top(0, {})


def top_of(
    scores: Iterable[NodeScore],
    most: int,
    before: Top = NO_TOP,
    nodes: Collection[str] = (),
    skewed: Collection[str] = (),
) -> Top:
    """Return the worst of these, at most this number; equal scores by UID.

    A new choice is a message to a node. So these nodes are asked for as much as before, if it is a
    little more than they have.

    Scores of `skewed` nodes are known of their pods in full alone. So each of these is asked for
    one pod, as long as there is room.
    """
    worst = tuple(heapq.nlargest(most, scores))
    threshold = worst[-1].place.score if worst and len(worst) == most else 0
    by_node = Counter(each.node for each in worst)
    room = _MOST_TIMES * most - len(worst) - _spare(len(nodes), most) * len(nodes)
    of_skewed = _asked(by_node, {node: 1 for node in nodes if node in skewed}, room)
    room -= sum(of_skewed.values()) - len(worst)
    asked_before = {node: before.asked[node] for node in nodes if node in before.asked}
    asked = _asked(of_skewed, asked_before, room)
    return Top(threshold, by_node, worst, _min_score(threshold, before.min_score), asked, skewed)


def _asked(by_node: Mapping[str, int], before: Mapping[str, int], room: int) -> Mapping[str, int]:
    """Return the numbers before where they are larger, as long as there is room for the rest."""
    asked = dict(by_node)
    for node, number in sorted(before.items()):
        more = number - by_node.get(node, 0)
        if 0 < more <= room:
            asked[node] = number
            room -= more
    return asked


def _spare(nodes: int, max_pods: int) -> int:
    """Return the number of pods to spare of each of these nodes."""
    return 1 if nodes <= _NODES_TO_SPARE * max_pods else 0


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
    return Top(min(scores), nodes, min_score=min(scores), asked=nodes) if scores else None


def choice_of(node: str, top: Top | None, *, pods: int, nodes: int, max_pods: int) -> PodChoice:
    """Return the pods that a node is to report in full.

    `pods`: their number in the cluster, ended ones included. `nodes`: the number of those with
    pods, and of those that the last pods have left. `top`: None if no score is known yet.
    """
    if pods <= max_pods or nodes <= _MOST_TIMES:
        return PodChoice(max_pods)
    if top is None:
        return NO_PODS
    most = top.asked.get(node, 0) + _spare(nodes, max_pods)
    # The agent compares the limit with scores of its own version.
    min_score = 0 if node in top.skewed else top.min_score
    return PodChoice(most, min_score) if most else NO_PODS


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
