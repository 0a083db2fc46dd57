"""Reports of older agents, which keep no windows: a report's targets become a summary.

It is of one interval alone, made by the functions that agents use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.measurement import (
    NOTHING,
    Measurement,
    across_pods,
    of_one_pod,
    total,
)
from latencyprobe.domain.report import TargetReport, report_on
from latencyprobe.domain.score import score_of
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import (
    PodChoice,
    PodReport,
    ProbeSummary,
    verdict_counts,
    waiting_by_cause,
    worst_first,
)
from latencyprobe_operator.desired_state import PlacedPod
from latencyprobe_operator.observed_state import ReportedProbe


def summarised(
    report: ReportedProbe,
    placed: Mapping[str, PlacedPod],
    modules: Iterable[Module],
    *,
    sees_node: bool,
    uncounted: Collection[str],
    max_pods: int,
    choice: PodChoice,
    objectives: Sequence[Objective] = (),
) -> ReportedProbe:
    """Return the report with a summary of these pods, and the chosen ones in full.

    `sees_node`: readers may see figures of the whole node. `uncounted`: counters that the node
    cannot count. `objectives`: they decide what verdicts find worth attention.
    """
    modules = tuple(modules)
    node = report.node if sees_node else None
    measurements = _by_pod(report, placed)
    pods = [
        _pod(
            placed[uid],
            report_on(measurement, modules, node, uncounted=uncounted, objectives=objectives),
        )
        for uid, measurement in measurements.items()
    ]
    merged = total(map(across_pods, measurements.values()))
    summary = ProbeSummary(
        merged=merged,
        verdicts=verdict_counts(pods),
        waiting_ns=waiting_by_cause(pods),
        scores=worst_first((pod.place for pod in pods), max_pods),
    )
    chosen = set(choice.of(summary.scores))
    return replace(report, summary=summary, pods=tuple(pod for pod in pods if pod.place in chosen))


def _by_pod(report: ReportedProbe, placed: Mapping[str, PlacedPod]) -> dict[str, Measurement]:
    pods: dict[str, Measurement] = {}
    for target in report.targets:
        pod_uid = target.id.partition("/")[0]
        if pod_uid in placed:
            pods[pod_uid] = of_one_pod(pods.get(pod_uid, NOTHING), target.measurement)
    return pods


def _pod(placed: PlacedPod, report: TargetReport) -> PodReport:
    return PodReport(
        pod_uid=placed.pod.uid,
        name=placed.pod.name,
        containers=tuple(target.name for target in placed.targets),
        score=score_of(report),
        report=report,
    )
