"""A line of a verdict's evidence: a sentence for people, with its figure for programs."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The kind of a figure."""

    COUNTER = "counter"
    DURATION = "duration"
    PERCENTILE = "percentile"
    SHARE = "share"


class Unit(StrEnum):
    """The unit of a figure."""

    COUNT = "count"
    NS = "ns"
    PERCENT = "percent"


class EvidenceLine(str):
    """A sentence, and the figure in it that matters most.

    A text, since those who show it need no more. `kind`, `unit`: of `figure`, as sent to the
    operator, where newer agents may have others.
    """

    __slots__ = ("figure", "kind", "unit")

    kind: str
    figure: float
    unit: str

    def __new__(cls, text: str, kind: str, figure: float, unit: str) -> EvidenceLine:
        """Make one of a sentence and the figure in it."""
        made = super().__new__(cls, text)
        made.kind, made.figure, made.unit = kind, figure, unit
        return made

    def __getnewargs__(self) -> tuple[str, str, float, str]:  # type: ignore[override]
        """Return what a copy is made of."""
        return str(self), self.kind, self.figure, self.unit


def of_count(number: int, text: str) -> EvidenceLine:
    """Return a sentence about a number of events."""
    return EvidenceLine(text, Kind.COUNTER, number, Unit.COUNT)


def of_time(ns: float, text: str) -> EvidenceLine:
    """Return a sentence about a duration in nanoseconds: a mean one, a sum, or an age."""
    return EvidenceLine(text, Kind.DURATION, ns, Unit.NS)


def of_percentile(ns: float, text: str) -> EvidenceLine:
    """Return a sentence about the largest percentile in it, in nanoseconds."""
    return EvidenceLine(text, Kind.PERCENTILE, ns, Unit.NS)


def of_share(share: float, text: str) -> EvidenceLine:
    """Return a sentence about a part of a whole, from 0 to 1."""
    return EvidenceLine(text, Kind.SHARE, 100 * share, Unit.PERCENT)
