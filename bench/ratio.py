"""Ratios measured in rounds: the median with its quartiles, and slices of time in pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass

MEDIAN = "median (quartiles)"
"""The heading of a column of spreads."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds. `lower` and `upper` are its quartiles."""

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        found = list(values)
        if len(found) == 1:
            found *= 2  # quantiles() wants two
        lower, median, upper = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, lower, upper, min(found), max(found))

    def __str__(self) -> str:
        return self.text(2)

    def text(self, digits: int) -> str:
        """Return the median and the quartiles for people."""
        return f"{self.median:.{digits}f}  ({self.lower:.{digits}f} to {self.upper:.{digits}f})"

    def document(self) -> dict[str, float]:
        """Return the figures for programs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Paired:
    """The outcome of `paired`: the ratios of each arm, and the rates of the slices between them."""

    ratios: Mapping[str, Sequence[float]]
    unprobed: Sequence[float]


async def paired(
    arms: Mapping[str, Callable[[], AbstractAsyncContextManager[None]]],
    rate: Callable[[], float],
    rounds: int,
    advance: Callable[[], None],
) -> Paired:
    """Measure the rate within each arm in turns, and between two of them without any.

    The ratio compares with the mean of the slices before and after, which removes the drift of the
    machine. `advance` is called after each arm.
    """
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    unprobed = [rate()]
    for _ in range(rounds):
        for name, arm in arms.items():
            async with arm():
                probed = rate()
            unprobed.append(rate())
            ratios[name].append(2 * probed / (unprobed[-2] + unprobed[-1]))
            advance()
    return Paired(ratios, unprobed)


def verdict(*, met: bool) -> str:
    """Return the text of a comparison with a target."""
    return "[green]met[/]" if met else "[red]not met[/]"
