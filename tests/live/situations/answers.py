"""Answers: the causes that count as right for a situation, and how a verdict is graded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from latencyprobe.domain.causes import Bottleneck as Cause
from latencyprobe.domain.verdict import Verdict

__all__ = ["Answer", "Cause", "Grade", "answer"]


class Grade(StrEnum):
    """How far a verdict leads: to the cause, close to it, or elsewhere."""

    RIGHT = "right"
    HALF = "half"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that one end of a situation deserves.

    `right`, `half`: the causes that lead to the truth, or close to it. `says`: a pattern that
    evidence or next step have to match; a right cause without it leads half-way.
    """

    right: frozenset[Cause]
    half: frozenset[Cause] = frozenset()
    says: str = ""

    def grade(self, verdict: Verdict) -> Grade:
        """Compare a verdict with this answer."""
        named = str(verdict.bottleneck)
        if named in self.right:
            text = "\n".join((*verdict.evidence, verdict.next_step))
            is_said = re.search(self.says, text, re.IGNORECASE) is not None
            return Grade.RIGHT if is_said else Grade.HALF
        return Grade.HALF if named in self.half else Grade.WRONG


def answer(*right: Cause, half: Iterable[Cause] = (), says: str = "") -> Answer:
    """The answer with these causes."""
    return Answer(frozenset(right), frozenset(half), says)


# Of a control: no accusation. A few packets are no data, and that is no accusation either.
HEALTHY = answer(Cause.NONE, half=[Cause.INSUFFICIENT_DATA])
HEALTHY_AND_QUIET = answer(Cause.NONE, Cause.INSUFFICIENT_DATA)
