"""The table of situations: the truth, the verdict from each end, and how right it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.live.situations.answers import Grade


@dataclass(frozen=True, slots=True)
class Row:
    """One situation from one end."""

    situation: str
    end: str
    truth: str
    verdict: str
    grade: Grade
    next_step: str


def table(rows: Iterable[Row]) -> str:
    """The rows as text, with the counts of right, half and wrong."""
    ordered = list(rows)
    lines = []
    known = ""
    for row in ordered:
        if row.situation != known:
            known = row.situation
            lines.append(f"{known}: {row.truth}")
        lines.append(f"    {row.end:<6}  {row.grade:<5}  {row.verdict:<24}  {row.next_step[:90]}")
    counts = [f"{sum(row.grade is grade for row in ordered)} {grade}" for grade in Grade]
    return "\n".join([*lines, f"verdicts on situations: {', '.join(counts)}"])
