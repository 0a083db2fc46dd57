"""Drafts: statuses that are not written yet, with the rows of pods only if those may be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latencyprobe_operator.probes.document import MAX_BYTES, Document, size_bytes
from latencyprobe_operator.probes.facts import PodFacts, ProbeFacts
from latencyprobe_operator.probes.objectives import Judgement
from latencyprobe_operator.probes.status import build_without_pods

# Of a document without rows of pods: with those, it surely fits.
_SMALL_BYTES = MAX_BYTES // 4


@dataclass(frozen=True, slots=True)
class Draft:
    """The document of a status. `left_out`: the facts of the rows of pods that it lacks.

    `judgements`: those of the objectives.
    """

    document: Document
    left_out: ProbeFacts | None = None
    judgements: Sequence[Judgement] = ()


def draft_without_pods(
    facts: ProbeFacts, *, now: str, can_hold: Callable[[Sequence[PodFacts]], bool]
) -> Draft | None:
    """Build the status of these facts without the rows of pods; return None if it can hold them.

    `can_hold`: as `StatusWriter.can_hold`.
    """
    # An idle probe has no figures but the last ones, which are written in any case.
    if facts.phase is not None or facts.node_context or can_hold(facts.pods):
        return None
    document = build_without_pods(facts, now=now)
    return Draft(document, facts) if size_bytes(document) <= _SMALL_BYTES else None
