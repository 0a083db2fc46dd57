"""Summaries in agents' reports: decoded and checked on arrival, once.

A corrupt summary costs the report on that probe. Pods that the agent was not asked for are left
out, with their scores, and counted. For a window after an operator begins to lead, only living ones
count: an honest agent has ended pods of the time before.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.fairness import MAX_SUMMARISED_PODS, TargetName
from latencyprobe.domain.stages import BY_NAME
from latencyprobe.domain.summary import PodReport, PodScore, ProbeSummary
from latencyprobe.protocol.limits import check_length, check_moment
from latencyprobe.protocol.measurements import CorruptMessageError
from latencyprobe.protocol.newer import shown_names
from latencyprobe.protocol.summaries import MAX_PODS, pod_from_proto, summary_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.asked_pods import AskedPods, FindPod
from latencyprobe_operator.agents.messages import target_status, text_of, with_node
from latencyprobe_operator.observed_state import (
    UNKNOWN_SOURCE,
    ReportedProbe,
    ReportedTarget,
    ReportSource,
    Span,
)

_CAUSES = frozenset(map(str, Bottleneck))


def is_summary(message: pb.ProbeReport) -> bool:
    """Decide whether a report is of an agent that keeps windows."""
    return message.HasField("summary") or bool(message.pods)


def reported_summary(
    message: pb.ProbeReport,
    asked: Container[TargetName],
    pods: AskedPods,
    source: ReportSource = UNKNOWN_SOURCE,
) -> ReportedProbe:
    """Decode a report of a summary and pods in full, or of some more pods in full alone."""
    try:
        check_length("pods", len(message.pods), MAX_PODS)
        span = _span(message)
        summary = _summary(message)
        received = [pod_from_proto(pod) for pod in message.pods]
    except CorruptMessageError as error:
        return ReportedProbe(
            probe_uid=message.id,
            source=source,
            corruption=text_of(str(error)),
        )
    find = pods.finder(message.id)
    in_full = tuple(_asked_for(received, message.id, pods, find))
    scores = summary.scores if summary else ()
    known_scores = tuple(_scores(scores, find))
    unasked = len(received) - len(in_full) + len(scores) - len(known_scores)
    if unasked and pods.may_have_earlier(message.id):
        unasked = _of_living_pods(received, scores, find)
    # Without a summary there are none.
    statuses = message.summary.statuses
    targets = tuple(
        ReportedTarget(id=status.id, status=target_status(status))
        for status in statuses
        if (message.id, status.id) in asked
    )
    report = ReportedProbe(
        probe_uid=message.id,
        span=span,
        source=source,
        summary=summary
        and replace(
            summary,
            scores=known_scores,
            verdicts=_limited(summary.verdicts, pods.most(message.id)),
        ),
        pods=in_full,
        targets=targets,
        unasked=unasked + len(statuses) - len(targets),
    )
    if summary is not None and message.HasField("node"):
        report = with_node(report, message.node)
    return replace(report, unknown=_unknown(message, report))


def _summary(message: pb.ProbeReport) -> ProbeSummary | None:
    if not message.HasField("summary"):
        return None
    summary = summary_from_proto(message.summary)
    if summary.pods > MAX_SUMMARISED_PODS:
        raise CorruptMessageError(
            "summary.verdicts",
            f"{summary.pods} pods, but at most {MAX_SUMMARISED_PODS} are allowed",
        )
    return summary


def _limited(verdicts: Mapping[str, int], most: int | None) -> Mapping[str, int]:
    """Return the verdicts on as many pods as the agent was asked for; the rest is left out."""
    if most is None or sum(verdicts.values()) <= most:
        return verdicts
    limited: dict[str, int] = {}
    for cause, pods in verdicts.items():
        limited[cause] = min(pods, most - sum(limited.values()))
    return limited


def _unknown(message: pb.ProbeReport, report: ReportedProbe) -> tuple[str, ...]:
    """Return the names of a newer agent that this operator does not know, of all in a report."""
    names = {name for pod in report.pods for name in pod.unknown}
    if report.summary is not None:
        names |= _unknown_in_summary(message.summary, report.summary)
    if len(report.node.stages) < len(message.node.stages):
        names |= {stage.name for stage in message.node.stages if stage.name not in BY_NAME}
    return shown_names(names)


def _unknown_in_summary(message: pb.ProbeSummary, summary: ProbeSummary) -> set[str]:
    names = {name for name in (*message.verdicts, *message.waiting_ns) if name not in _CAUSES}
    if len(summary.merged.stages) < len(message.stages):
        names |= {stage.name for stage in message.stages if stage.name not in BY_NAME}
    if len(summary.merged.counters) < len(message.counters):
        names |= {*message.counters} - summary.merged.counters.keys()
    return names


def _asked_for(
    received: Iterable[PodReport], probe_uid: str, pods: AskedPods, find: FindPod
) -> Iterator[PodReport]:
    """Yield the pods that the agent was asked for, by the operator's UIDs and names."""
    for pod in received:
        known = find(pod.pod_uid)
        if known is None and pod.ended:
            known = pods.admit(probe_uid, pod.pod_uid, pod.name)
        if known:
            yield replace(pod, pod_uid=known.uid, name=known.name)


def _of_living_pods(
    received: Iterable[PodReport], scores: Iterable[PodScore], find: FindPod
) -> int:
    """Count the pods that were not asked for and have not ended, and their scores."""
    living = {pod.pod_uid for pod in received if not pod.ended and find(pod.pod_uid) is None}
    return len(living) + sum(pod_uid in living for _, pod_uid in scores)


def _scores(received: Iterable[PodScore], find: FindPod) -> Iterator[PodScore]:
    for score, pod_uid in received:
        known = find(pod_uid)
        if known:
            yield PodScore(score, known.uid)


def _span(message: pb.ProbeReport) -> Span:
    """Return the interval. It may end before it begins: a node's clock may be set back."""
    return Span(_time_s(message.begin, "begin"), _time_s(message.end, "end"))


def _time_s(moment: Timestamp, field: str) -> float:
    check_moment(moment, field)
    return moment.seconds + moment.nanos / 1e9
