"""Summaries as the protocol carries them: between the domain's values and protobuf's messages.

As in `measurements`: a received message is checked here, once, and names and texts in it become
printable. An unknown name of a newer agent is no error, and is reported: see `newer`. A next step
is one of this version's own: an agent that was taken over is not to advise people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration

from latencyprobe.domain.causes import CAUSES, Bottleneck
from latencyprobe.domain.evidence import EvidenceLine, Kind, Unit
from latencyprobe.domain.measurement import Measurement, largest_counters
from latencyprobe.domain.packed_figures import PackedFigures, pack_figures
from latencyprobe.domain.patience import KINDS_OF_PEERS
from latencyprobe.domain.report import StageReport, TargetReport
from latencyprobe.domain.stages import BY_NAME, INDEX
from latencyprobe.domain.summary import PodChoice, PodReport, PodScore, ProbeSummary
from latencyprobe.domain.verdict import NEXT_STEPS, Verdict
from latencyprobe.printable import bounded
from latencyprobe.protocol.cgroups import cgroups_from_proto, cgroups_to_proto
from latencyprobe.protocol.limits import (
    LARGEST_NUMBER,
    LOWEST_SAMPLING_RATIO,
    MAX_STAGES,
    check_counters,
    check_length,
    check_moment,
    check_numbers,
    check_percent,
    check_sampling_ratio,
    check_whole_percent,
)
from latencyprobe.protocol.measurements import (
    MAX_NAME_LENGTH,
    MAX_OPEN_COUNTERS,
    CorruptMessageError,
    counters_from_proto,
    measurement_from_proto,
    measurement_to_proto,
    plain_counters,
    with_short_names,
)
from latencyprobe.protocol.newer import kept_figures, shown_names
from latencyprobe.protocol.peers import peers_from_proto, peers_to_proto
from latencyprobe.protocol.pending import newer_pending, pending_from_proto, pending_to_proto
from latencyprobe.protocol.summary_stages import stages_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb

# Of one probe's summary or answer. The CR's `report.maxPods` is at most 100.
MAX_PODS = 256
MAX_CONTAINERS = 128
# Names of pods and containers in Kubernetes.
MAX_POD_NAME_LENGTH = 253
MAX_CONTAINER_NAME_LENGTH = 63
MAX_CAUSES = 64
_MAX_EVIDENCE = 32
# Of one sentence.
_MAX_TEXT_LENGTH = 400
_CAUSES = {str(cause): str(cause) for cause in Bottleneck}
_KINDS_AND_UNITS = {str(word): str(word) for word in (*Kind, *Unit)}
# An operator keeps the same texts for all pods.
_NEXT_STEPS = {text: text for text in ("", *NEXT_STEPS)}
_UNKNOWN_NEXT_STEP = (
    "The agent's next step is not one of this version of the operator, and is not shown: see the "
    "evidence."
)


def choice_to_proto(choice: PodChoice) -> pb.PodChoice:
    """Encode the choice of the pods that are reported in full."""
    return pb.PodChoice(most=choice.most, min_score=choice.min_score)


def choice_from_proto(message: pb.PodChoice) -> PodChoice:
    """Decode the choice of the pods that are reported in full."""
    return PodChoice(min(message.most, MAX_PODS), message.min_score)


def summary_to_proto(summary: ProbeSummary) -> pb.ProbeSummary:
    """Encode a summary; its pods in full have a field beside it."""
    stages, counters = measurement_to_proto(summary.merged)
    return pb.ProbeSummary(
        score_version=summary.score_version,
        stages=stages,
        counters=largest_counters(counters, MAX_OPEN_COUNTERS),
        verdicts=summary.verdicts,
        waiting_ns=summary.waiting_ns,
        scores=[pb.PodScore(pod_uid=each.pod_uid, score=each.score) for each in summary.scores],
        unobserved=_duration(summary.unobserved_ns),
        kept=None if summary.kept_ns is None else _duration(summary.kept_ns),
        of_first_state=summary.of_first_state,
    )


def summary_from_proto(message: pb.ProbeSummary) -> ProbeSummary:
    """Decode and check a summary; raise CorruptMessageError."""
    check_length("summary.stages", len(message.stages), MAX_STAGES)
    stages = stages_from_proto(message.stages, "summary.stages")
    counters = plain_counters(message.counters)
    check_counters(counters, "summary.counters")
    check_length("summary.scores", len(message.scores), MAX_PODS)
    scores = tuple([PodScore(each.score, each.pod_uid) for each in message.scores])
    check_numbers(max(scores, default=())[:1], "summary.scores")
    if len({pod_uid for _, pod_uid in scores}) < len(scores):
        raise CorruptMessageError("summary.scores", "a pod is repeated")
    return ProbeSummary(
        merged=Measurement(stages, counters_from_proto(counters)),
        verdicts=_causes(
            message.verdicts, "summary.verdicts", of_unknown=Bottleneck.INSUFFICIENT_DATA
        ),
        waiting_ns=_causes(message.waiting_ns, "summary.waiting_ns"),
        scores=scores,
        score_version=message.score_version,
        unobserved_ns=_nanoseconds(message.unobserved, "summary.unobserved"),
        kept_ns=_nanoseconds(message.kept, "summary.kept") if message.HasField("kept") else None,
        of_first_state=message.of_first_state,
    )


def pod_to_proto(pod: PodReport) -> pb.PodReport:
    """Encode one pod in full."""
    return pb.PodReport(
        pod_uid=pod.pod_uid,
        score=pod.score,
        name=pod.name,
        containers=pod.containers,
        ended=pod.ended,
        verdict=_verdict_to_proto(pod.report.verdict),
        stages=map(_stage_to_proto, pod.report.stages),
        counters=largest_counters(pod.report.counters, MAX_OPEN_COUNTERS),
        netns_counters=largest_counters(pod.report.netns_counters, MAX_OPEN_COUNTERS),
        pending=pending_to_proto(pod.report.pending),
        peers=peers_to_proto(pod.report.peers),
        cgroups=cgroups_to_proto(pod.report.cgroups),
    )


def pod_from_proto(message: pb.PodReport) -> PodReport:
    """Decode and check one pod in full; raise CorruptMessageError.

    Figures of a newer agent that need no meaning are kept. `unknown` has their names too.
    """
    check_length("pod.stages", len(message.stages), MAX_STAGES)
    check_length("pod.containers", len(message.containers), MAX_CONTAINERS)
    check_numbers((message.score,), "pod.score")
    # Also leaves out what it does not know.
    counters = plain_counters(message.counters)
    netns_counters = plain_counters(message.netns_counters)
    counted = measurement_from_proto((), counters, netns_counters)
    check_counters(counters, "pod.counters")
    check_numbers(netns_counters.values(), "pod.netns_counters")
    stages: dict[int, bytes] = {}
    unknown: set[str] = set()
    for index, stage in enumerate(message.stages):
        known = INDEX.get(stage.name)
        if known in stages:
            raise CorruptMessageError("pod.stages", "a stage is repeated")
        if known is None:
            unknown.add(stage.name)
        else:
            stages[known] = _packed(known, stage, f"pod.stages[{index}]")
    pending = pending_from_proto(message.pending, "pod.pending")
    newer_counters: set[str] = set()
    if len(counted.counters) < len(counters):
        newer_counters = counters.keys() - counted.counters.keys()
    newer_waits = newer_pending(message.pending) if len(pending) < len(message.pending) else {}
    unknown |= newer_counters | newer_waits.keys() | _unknown_names(message)
    return PodReport(
        pod_uid=message.pod_uid,
        name=bounded(message.name, MAX_POD_NAME_LENGTH),
        containers=tuple(bounded(each, MAX_CONTAINER_NAME_LENGTH) for each in message.containers),
        score=message.score,
        report=TargetReport(
            PackedFigures(stages.values()),
            {**with_short_names(counted.counters), **kept_figures(counters, newer_counters)}
            if newer_counters
            else with_short_names(counted.counters),
            with_short_names(counted.netns_counters),
            _verdict_from_proto(message.verdict),
            {**pending, **kept_figures(newer_waits, newer_waits)} if newer_waits else pending,
            peers_from_proto(message.peers, "pod.peers"),
            cgroups_from_proto(message.cgroups, counted.counters, "pod.cgroups"),
        ),
        ended=message.ended,
        unknown=shown_names(unknown),
    )


def _unknown_names(message: pb.PodReport) -> set[str]:
    """Return the unknown causes, and the unknown kinds of peers, of a pod."""
    verdict = message.verdict
    names = {name for name in verdict.waiting_ns if name not in _CAUSES}
    if verdict.bottleneck and verdict.bottleneck not in _CAUSES:
        names.add(verdict.bottleneck)
    return names | {peer.kind for peer in message.peers if peer.kind not in KINDS_OF_PEERS}


def _verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        bottleneck=verdict.bottleneck,
        share_percent=verdict.share_percent,
        evidence=[_evidence_to_proto(each) for each in verdict.evidence],
        next_step=verdict.next_step,
        stage=verdict.stage or "",
        culprit=verdict.culprit,
        waiting_ns=verdict.waiting_ns,
    )


def _evidence_to_proto(evidence: str) -> pb.Evidence:
    if not isinstance(evidence, EvidenceLine):
        return pb.Evidence(text=evidence)
    return pb.Evidence(
        kind=evidence.kind, figure=evidence.figure, unit=evidence.unit, text=evidence
    )


def _evidence_from_proto(message: pb.Evidence, field: str) -> str:
    text = bounded(message.text, _MAX_TEXT_LENGTH)
    if not message.kind:
        return text
    if not 0 <= message.figure <= LARGEST_NUMBER:
        raise CorruptMessageError(f"{field}.figure", f"invalid number {message.figure}")
    kind, unit = (
        _KINDS_AND_UNITS.get(each) or bounded(each, MAX_NAME_LENGTH)
        for each in (message.kind, message.unit)
    )
    return EvidenceLine(text, kind, message.figure, unit)


def _verdict_from_proto(message: pb.Verdict) -> Verdict:
    check_length("verdict.evidence", len(message.evidence), _MAX_EVIDENCE)
    check_whole_percent(message.share_percent, "verdict.share_percent")
    evidence = tuple(
        _evidence_from_proto(each, f"verdict.evidence[{index}]")
        for index, each in enumerate(message.evidence)
    )
    try:
        bottleneck = Bottleneck(message.bottleneck)
    except ValueError:
        bottleneck = Bottleneck.INSUFFICIENT_DATA
        name = bounded(message.bottleneck, MAX_NAME_LENGTH)
        evidence = (f"the agent's verdict is {name!r}, unknown to this version", *evidence)
    stage = message.stage if message.stage in BY_NAME else None
    return Verdict(
        bottleneck,
        round(message.share_percent),
        evidence,
        _next_step(message.next_step, bottleneck),
        stage,
        culprit=bounded(message.culprit, MAX_NAME_LENGTH),
        waiting_ns=_causes(message.waiting_ns, "verdict.waiting_ns"),
    )


def _stage_to_proto(stage: StageReport) -> pb.StageFigures:
    return pb.StageFigures(
        name=stage.name,
        count=stage.count,
        mean_ns=stage.mean_ns,
        p50_ns=stage.p50_ns,
        p90_ns=stage.p90_ns,
        p99_ns=stage.p99_ns,
        max_ns=stage.max_ns,
        share_percent=stage.share_percent,
        lost=stage.lost,
        unmatched=stage.unmatched,
        clamped=stage.clamped,
        sampling_ratio=stage.sampling_ratio,
    )


def _packed(stage: int, message: pb.StageFigures, field: str) -> bytes:
    figures = (
        message.count,
        message.mean_ns,
        message.p50_ns,
        message.p90_ns,
        message.p99_ns,
        message.max_ns,
        message.lost,
        message.unmatched,
        message.clamped,
    )
    share = message.share_percent if message.HasField("share_percent") else None
    ratio = message.sampling_ratio
    # An operator takes in 8,000 of these a second: the functions that name a fault run only then.
    if max(figures) > LARGEST_NUMBER or not LOWEST_SAMPLING_RATIO <= ratio <= 1:
        check_numbers(figures, field)
        check_sampling_ratio(ratio, field)
    if share is not None and not 0 <= share <= LARGEST_NUMBER:
        check_percent(share, f"{field}.share_percent")
    return pack_figures(stage, figures, share, ratio)


def _next_step(text: str, bottleneck: Bottleneck) -> str:
    """Return the text if it is one of ours; else our own for this bottleneck."""
    known = _NEXT_STEPS.get(text)
    if known is not None:
        return known
    cause = CAUSES.get(bottleneck)
    return cause.next_step if cause else _UNKNOWN_NEXT_STEP


def _causes(figures: Mapping[str, int], field: str, *, of_unknown: str = "") -> dict[str, int]:
    """Return figures by cause, checked.

    Those of a newer agent's causes count for `of_unknown`; without it they are left out.
    """
    if not figures:
        return {}
    check_length(field, len(figures), MAX_CAUSES)
    check_numbers(figures.values(), field)
    named = ((_CAUSES.get(name, of_unknown), figure) for name, figure in figures.items())
    return _joint((name, figure) for name, figure in named if name)


def _joint(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    figures: dict[str, int] = {}
    for name, figure in pairs:
        figures[name] = figures.get(name, 0) + figure
    return figures


def _duration(nanoseconds: int) -> Duration:
    seconds, nanos = divmod(nanoseconds, 10**9)
    return Duration(seconds=seconds, nanos=nanos)


def _nanoseconds(message: Duration, field: str) -> int:
    check_moment(message, field)
    return message.seconds * 10**9 + message.nanos
