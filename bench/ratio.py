"""Ratios measured in rounds: the median, with the extremes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.median:.2f}  ({self.least:.2f} to {self.most:.2f})"

    def document(self) -> dict[str, float]:
        """Return the figures for programs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def verdict(*, met: bool) -> str:
    """Return the text of a comparison with a target."""
    return "[green]met[/]" if met else "[red]not met[/]"
