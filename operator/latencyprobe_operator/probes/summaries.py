"""The newest summary of each node of one probe, and their sum.

The operator keeps no windows: an agent's summary is of its whole window, so one report of each node
is the whole picture. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from latencyprobe.domain.causes import NO_ACCUSATION, Bottleneck
from latencyprobe.domain.measurement import (
    MAX_NODE_STAGES,
    Measurement,
    NodeMeasurement,
    NodeStage,
    count_failures,
    largest_counters,
)
from latencyprobe.domain.packed_stages import PackedStages, pack
from latencyprobe.domain.score import score_of
from latencyprobe.domain.summary import PodReport, PodScore, ProbeSummary, is_by_distance
from latencyprobe_operator.observed_state import ReportedProbe
from latencyprobe_operator.probes.accusations import NodeAccusations
from latencyprobe_operator.probes.facts import AccusedCause
from latencyprobe_operator.probes.skew import skew_of_scores
from latencyprobe_operator.probes.sums import MAX_COUNTERS, PackedMeasurement, RunningSum, packed
from latencyprobe_operator.probes.unobserved import (
    ALL_OBSERVED,
    UNKNOWN_AGE,
    ObservedTime,
    Unobserved,
    WindowAge,
)

# Adding up this many takes some 10 ms.
_NODES_OF_A_STEP = 50
_NOTHING: Mapping[Any, Any] = MappingProxyType({})
# Names of a newer agent, of one interval.
_MOST_UNKNOWN = 64
# Between two reports of a node: one may be lost, and the next is late.
LATE_INTERVALS = 2.5


class NodePod(NamedTuple):
    """A pod in full, and its node."""

    node: str
    pod: PodReport


class NodeScore(NamedTuple):
    """The score of a pod, and its node. Sorts the worst pod last."""

    place: PodScore
    node: str


@dataclass(slots=True)
class _NodeFigures:
    """The figures of one node. `at`: the time when its newest summary arrived.

    Large, because each part of a summary is a field.
    """

    accusations: NodeAccusations
    at: float = 0.0
    end: float = 0.0
    merged: PackedMeasurement = field(default_factory=PackedMeasurement)
    measured: int = 0
    scores: array[int] = field(default_factory=lambda: array("Q"))
    """In 8 bytes each: a cluster may have 100,000."""
    scored: tuple[str, ...] = ()
    """The UIDs of the pods with these scores. Tuples of plain values are no work for collections
    of garbage."""
    in_full: dict[str, PodReport] = field(default_factory=dict)
    skew: str = ""
    unknown: tuple[str, ...] = ()
    keeps_window: bool = True
    counters: Mapping[str, int] = field(default_factory=dict)
    slowest_ns: int = 0
    node_stages: Mapping[NodeStage, PackedStages] = field(default_factory=dict)

    def rank(self) -> tuple[int, int]:
        """Return the sort key of nodes: the number of failures, then the slowest p99."""
        return count_failures(self.counters), self.slowest_ns


class NodeSummaries:
    """The figures of one probe: those of each of its nodes, and of all together."""

    def __init__(self, accused_before: Collection[str] = ()) -> None:
        """Take in nothing yet. `accused_before`: causes in the status of an earlier operator."""
        self._nodes: dict[str, _NodeFigures] = {}
        self._observed: dict[str, ObservedTime] = {}
        """Of all nodes that run pods of the probe, also of those without figures in the window."""
        self._accused_before = accused_before
        self._began_at = -math.inf
        """The time since which this operator knows that the probe measures the same."""

    def take(
        self,
        node: str,
        report: ReportedProbe,
        summary: ProbeSummary,
        *,
        at: float,
        window_s: float,
        keeps_window: bool = True,
        wanted_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Take in a node's summary in place of the one before.

        `keeps_window`: it is of the whole window, and its agent answers a choice of pods.
        `wanted_s` returns the seconds for which the probe wants pods of this node measured.
        """
        figures = self._nodes.get(node)
        if figures is None:
            figures = self._nodes[node] = _NodeFigures(NodeAccusations(self._accused_before))
        # An agent sends its newest summary again with each stream. Older ones send no time.
        if not keeps_window or report.span.end != figures.end:
            figures.accusations.take(_accused(summary), pods=summary.pods)
        figures.at, figures.end = at, report.span.end
        figures.merged = packed(summary.merged)
        figures.measured = summary.pods
        figures.keeps_window = keeps_window
        figures.skew, figures.unknown = skew_of_scores(summary.score_version), report.unknown
        pods = _scored_here(report.pods) if figures.skew else report.pods
        scores = [pod.place for pod in pods] if figures.skew else summary.scores
        figures.scores = array("Q", [each.score for each in scores])
        figures.scored = tuple(each.pod_uid for each in scores)
        figures.in_full = {pod.pod_uid: pod for pod in pods}
        if keeps_window:
            stated_s = summary.unobserved_ns / 1e9
            self._observed.setdefault(node, ObservedTime()).note(
                report.span,
                report.source,
                stated_s=stated_s,
                window_s=window_s,
                at=at,
                age=_age_of(summary),
                wanted_s=lambda: min(wanted_s(), at - self._began_at),
            )
        _take_node(figures, report.node)

    def take_more(self, node: str, report: ReportedProbe) -> None:
        """Take in some more pods in full of a node's newest summary."""
        figures = self._nodes.get(node)
        if not figures or figures.skew or report.span.end != figures.end:
            return
        names = sorted({*figures.unknown, *report.unknown})
        figures.unknown = tuple(names[:_MOST_UNKNOWN])
        figures.in_full.update(
            (pod.pod_uid, pod) for pod in report.pods if pod.pod_uid in figures.scored
        )

    def clear(self, *, at: float) -> None:
        """Drop everything: another measurement begins at this time."""
        self._began_at = at
        self._nodes.clear()
        self._observed.clear()
        self._accused_before = ()

    def forget(
        self, current: Collection[str], *, at: float, window_s: float, interval_s: float
    ) -> None:
        """Drop the summaries of windows that have passed.

        `current`: the nodes that run pods of the probe. Two intervals pass between two reports of
        a node if one is lost.
        """
        kept_s = max(window_s, LATE_INTERVALS * interval_s)
        # Elsewhere there is nothing to observe, until another pod comes.
        for node in self._observed.keys() - {*current}:
            del self._observed[node]
        for node, figures in list(self._nodes.items()):
            if figures.at < at - kept_s:
                del self._nodes[node]

    def is_empty_since(self, node: str, since: float) -> bool:
        """Return True if a summary of this node has arrived since, and has no pods."""
        figures = self._nodes.get(node)
        return figures is not None and figures.at > since and not figures.measured

    @property
    def measured(self) -> int:
        """The number of pods that were measured in the window."""
        return sum(figures.measured for figures in self._nodes.values())

    def accused(self) -> Mapping[Bottleneck, AccusedCause]:
        """Return the causes that verdicts on pods of any node name, those that last."""
        found: dict[Bottleneck, AccusedCause] = {}
        for figures in self._nodes.values():
            for cause, each in figures.accusations.lasting.items():
                found[cause] = found[cause].joined(each) if cause in found else each
        return found

    def scores(self) -> Iterator[list[NodeScore]]:
        """Yield the scores that can be compared, in parts that take little time each."""
        nodes = list(self._nodes.items())
        for begin in range(0, len(nodes), _NODES_OF_A_STEP):
            yield [
                NodeScore(PodScore(score, pod_uid), node)
                for node, figures in nodes[begin : begin + _NODES_OF_A_STEP]
                for score, pod_uid in zip(figures.scores, figures.scored, strict=True)
            ]

    def in_full(self) -> Iterator[NodePod]:
        """Yield the pods in full that can be compared."""
        for node, figures in self._nodes.items():
            for pod in figures.in_full.values():
                yield NodePod(node, pod)

    def lacks(self, node: str, pod_uid: str) -> bool:
        """Decide whether the report on this pod is missing and its agent may still send it."""
        figures = self._nodes.get(node)
        if figures is None or not figures.keeps_window:
            return False
        return pod_uid not in figures.in_full

    def adding_up(self, total: RunningSum) -> Iterator[None]:
        """Add all summaries to this sum, in steps that take little time each."""
        for index, figures in enumerate(list(self._nodes.values())):
            if index and index % _NODES_OF_A_STEP == 0:
                yield
            total.add(figures.merged)

    def merged(self) -> Measurement:
        """Return the sum over all nodes at once."""
        total = RunningSum()
        for _ in self.adding_up(total):
            pass
        return total.value()

    def skew_of(self, node: str) -> str:
        """Return the reason why the scores of this node cannot be compared; empty if they can."""
        figures = self._nodes.get(node)
        return figures.skew if figures else ""

    @property
    def skewed(self) -> Collection[str]:
        """The nodes whose scores cannot be compared."""
        return {node for node, figures in self._nodes.items() if figures.skew}

    def unknown_of(self, node: str) -> Collection[str]:
        """Return the names of figures and causes of this node that this operator does not know."""
        figures = self._nodes.get(node)
        return figures.unknown if figures else ()

    def keeps_window(self, node: str) -> bool:
        """Return False if the node's agent is an older one, without windows."""
        figures = self._nodes.get(node)
        return figures is None or figures.keeps_window

    def unobserved(self, node: str, window_s: float) -> Unobserved:
        """Return the part of a node's window that was not observed."""
        observed = self._observed.get(node)
        return observed.unobserved(window_s) if observed and node in self._nodes else ALL_OBSERVED

    def of_nodes(self, *, most: int) -> dict[str, NodeMeasurement]:
        """Return the measurements of the nodes as a whole: their counters, if there are any.

        As many nodes as are shown, the worst first, have their stages too. Unpacking those of a
        thousand nodes would take longer than their next reports.
        """
        worst = heapq.nlargest(most, self._nodes, key=lambda node: self._nodes[node].rank())
        found = {
            name: NodeMeasurement(counters=figures.counters)
            for name, figures in self._nodes.items()
        }
        for name in worst:
            figures = self._nodes[name]
            stages = {stage: each[stage.name] for stage, each in figures.node_stages.items()}
            found[name] = NodeMeasurement(stages, figures.counters)
        return {name: measurement for name, measurement in found.items() if measurement}


def within_limits(node: NodeMeasurement) -> NodeMeasurement:
    """Return the stages with the most samples, and the largest counters, of a node."""
    most = heapq.nlargest(
        MAX_NODE_STAGES, node.stages.items(), key=lambda stage: stage[1].histogram.count
    )
    return NodeMeasurement(dict(most), largest_counters(node.counters, MAX_COUNTERS))


def _take_node(figures: _NodeFigures, node: NodeMeasurement) -> None:
    if not node:
        # Most probes get none.
        figures.slowest_ns, figures.counters, figures.node_stages = 0, _NOTHING, _NOTHING
        return
    figures.slowest_ns = max(
        (stage.histogram.percentile(99) for stage in node.stages.values()), default=0
    )
    most = within_limits(node)
    figures.counters = most.counters
    figures.node_stages = {stage: pack({stage.name: each}) for stage, each in most.stages.items()}


def _age_of(summary: ProbeSummary) -> WindowAge:
    if summary.kept_ns is None:
        return UNKNOWN_AGE
    return WindowAge(summary.kept_ns / 1e9, summary.of_first_state)


def _accused(summary: ProbeSummary) -> Mapping[Bottleneck, AccusedCause]:
    """Return the faults that verdicts on this node's pods name, with the waiting by them."""
    return {
        Bottleneck(cause): AccusedCause(pods, summary.waiting_ns.get(cause, 0))
        for cause, pods in summary.verdicts.items()
        if pods and cause not in NO_ACCUSATION and not is_by_distance(cause, summary.waiting_ns)
    }


def _scored_here(pods: Iterable[PodReport]) -> list[PodReport]:
    """Return these pods with the scores that this operator's own function gives them."""
    return [replace(pod, score=score_of(pod.report)) for pod in pods]
