"""Summaries: the report of one node on one probe's pods over a window.

A node sends the sum over its pods, the scores of its worst pods, and a few pods in full. Sums of
many nodes add up to those of the cluster. The worst pods of the cluster are among the worst of the
nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.report import TargetReport
from latencyprobe.domain.score import SCORE_VERSION
from latencyprobe.domain.verdict import Verdict


class PodScore(NamedTuple):
    """The score of one pod. Sorts the worst pod last; equal scores by UID."""

    score: int
    pod_uid: str


@dataclass(frozen=True, slots=True)
class PodChoice:
    """The pods in full of a node: among its worst `most`, those of at least this score."""

    most: int
    min_score: int = 0

    def of(self, worst_first: Sequence[PodScore]) -> tuple[PodScore, ...]:
        """Return the chosen ones of a node's scores."""
        return tuple(each for each in worst_first[: self.most] if each.score >= self.min_score)


NO_PODS = PodChoice(0)


@dataclass(frozen=True, slots=True)
class PodReport:
    """One pod over the window. `ended`: it was measured, and is no target any more."""

    pod_uid: str
    name: str
    containers: tuple[str, ...]
    score: int
    report: TargetReport
    ended: bool = False
    unknown: tuple[str, ...] = ()
    """Names of figures and causes of a newer agent that this version does not know."""

    @property
    def place(self) -> PodScore:
        """Its place among the pods."""
        return PodScore(self.score, self.pod_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSummary:
    """All pods of one probe on one node, over one window."""

    merged: Measurement = NOTHING
    """The sum over all pods, without the counters of their network namespaces."""
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """The number of pods by verdict."""
    waiting_ns: Mapping[str, int] = field(default_factory=dict)
    """Time of waiting by cause, of the pods with that verdict."""
    scores: tuple[PodScore, ...] = ()
    """The worst pods, worst first."""
    score_version: int = SCORE_VERSION
    unobserved_ns: int = 0
    """The part of the window in which the node did not measure."""
    kept_ns: int | None = None
    """The age of the window at its end, however long it is; None from an older agent."""
    of_first_state: bool = False
    """The window began with the agent's first state: one of an agent before it may be lost."""

    @property
    def pods(self) -> int:
        """The number of measured pods."""
        return sum(self.verdicts.values())


def worst_first(scores: Iterable[PodScore], most: int) -> tuple[PodScore, ...]:
    """Return the worst of these, at most this number."""
    return tuple(sorted(scores, reverse=True)[:most])


def verdict_counts(reports: Iterable[PodReport]) -> Mapping[str, int]:
    """Count pods by verdict."""
    return Counter(str(pod.report.verdict.bottleneck) for pod in reports)


def waiting_by_cause(reports: Iterable[PodReport]) -> Mapping[str, int]:
    """Add up the waiting of pods by the cause that the verdict on each names."""
    waiting: Counter[str] = Counter()
    for pod in reports:
        waiting.update(accused_waiting_ns(pod.report.verdict))
    return waiting


def accused_waiting_ns(verdict: Verdict) -> Mapping[str, int]:
    """Return the waiting by the verdict's own cause alone.

    A healthy pod waits a little for many causes, which together exceed the waiting of few others.
    """
    cause = str(verdict.bottleneck)
    return {cause: verdict.waiting_ns[cause]} if cause in verdict.waiting_ns else {}


def is_by_distance(cause: str, waiting_ns: Mapping[str, int]) -> bool:
    """Return True for a verdict that names the distance to the peers, which is no fault.

    Distance is never in the waiting by cause: see `judge`. `waiting_ns`: of that verdict, or of all
    pods with it.
    """
    return cause == Bottleneck.NETWORK and not waiting_ns.get(cause)
