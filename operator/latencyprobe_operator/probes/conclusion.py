"""The conclusion on all pods of a probe: that of their sum, or of the pods that accuse a cause.

Waiting that has not ended is in no sum of pods, and one pod that hangs is small beside many that do
not. So a sum without an accusation does not clear the pods. Nor does one that names the distance to
the peers: that is no fault.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from latencyprobe.domain.causes import CAUSES, NO_ACCUSATION, Bottleneck
from latencyprobe.domain.evidence import of_count
from latencyprobe.domain.summary import is_by_distance
from latencyprobe.domain.verdict import Verdict, with_culprit
from latencyprobe_operator.probes.document import WORST_POD_IS
from latencyprobe_operator.probes.facts import AccusedCause, PodFacts, ProbeFacts

# Causes of many pods change places often, and each change is news. So another one replaces that of
# before only with so many times its waiting.
_MUCH_LONGER = 2
_ORDER = {cause: index for index, cause in enumerate(Bottleneck)}
_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The cause for all pods, as the summary of a status has it."""

    bottleneck: Bottleneck
    stage: str | None
    evidence: tuple[str, ...]


def conclude(of_sum: Verdict, facts: ProbeFacts) -> Conclusion:
    """Return the cause that the sum's verdict names, or that of the pods if only they name one."""
    if facts.accused and not _accuses(of_sum):
        before = (facts.previous.get("summary") or {}).get("bottleneck")
        return _of_pods(_longest(facts.accused, before), facts)
    verdict = _with_common_culprit(of_sum, facts.pods)
    return Conclusion(verdict.bottleneck, verdict.stage, verdict.evidence)


def _accuses(verdict: Verdict) -> bool:
    """Return True if a verdict names a fault."""
    cause = verdict.bottleneck
    return cause not in NO_ACCUSATION and not is_by_distance(cause, verdict.waiting_ns)


def _longest(accused: Mapping[Bottleneck, AccusedCause], before: object) -> Bottleneck:
    """Return the cause with the longest waiting; that of before unless this one is much longer."""
    longest = min(accused, key=lambda cause: (-accused[cause].waiting_ns, _ORDER[cause]))
    for cause, each in accused.items():
        if cause == before and accused[longest].waiting_ns < _MUCH_LONGER * max(each.waiting_ns, 1):
            return cause
    return longest


def _of_pods(cause: Bottleneck, facts: ProbeFacts) -> Conclusion:
    """Return the conclusion from the pods with this verdict.

    They need not be listed. Stage, culprit and next step are those that all listed ones have.
    """
    same = (pod for pod in facts.pods if pod.report.verdict.bottleneck is cause)
    listed = [pod for pod in same if _accuses(pod.report.verdict)]
    verdicts = [pod.report.verdict for pod in listed]
    culprit = _common(each.culprit for each in verdicts)
    next_step = _common(each.next_step for each in verdicts) or CAUSES[cause].next_step
    evidence = (
        *_count_of_pods(facts, facts.accused[cause], listed),
        *((f"the longest for {culprit}",) if culprit else ()),
        next_step,
    )
    return Conclusion(cause, _common(each.stage for each in verdicts), evidence)


def _count_of_pods(
    facts: ProbeFacts, accused: AccusedCause, listed: Sequence[PodFacts]
) -> Iterator[str]:
    measured = len(facts.pods) + facts.omitted_pods
    worst = min(listed, key=lambda pod: pod.ended, default=None)
    name = f", {WORST_POD_IS}{worst.name}" if worst else ""
    yield of_count(accused.pods, f"pods with this verdict: {accused.pods:,} of {measured:,}{name}")


def _common(values: Iterable[_Value]) -> _Value | None:
    """Return the value that all of these have; None if they differ, or without any."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _with_common_culprit(verdict: Verdict, pods: Iterable[PodFacts]) -> Verdict:
    """Return the verdict on all pods with the culprit that those with the same verdict agree on.

    Cgroups of several nodes may have the same id, so the sum of all nodes has no identity for them.
    """
    if not verdict.culprit:
        return verdict
    same = (pod.report.verdict for pod in pods)
    culprit = _common(each.culprit for each in same if each.bottleneck is verdict.bottleneck)
    return with_culprit(verdict, culprit or "")
