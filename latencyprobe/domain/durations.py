"""Durations as people write them: Go's duration strings, as Kubernetes uses them.

`1h15m`, `10s`, `250ms`, `1.5s`, `800us`, `64ns`. Parsed to and printed from integer nanoseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction

NS_PER_UNIT = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")


# Go's time.Duration is an int64 of nanoseconds: no Kubernetes object can say more.
LONGEST_NS = (1 << 63) - 1
# No number with more digits is needed, and parsing a million of them would take minutes.
_LONGEST_TEXT = 64


class DurationError(ValueError):
    """A text that is not a duration. `text` holds it."""

    def __init__(self, text: str, problem: str = "") -> None:
        self.text = text
        super().__init__(
            f"{text!r} is not a duration{': ' + problem if problem else ''}; "
            "write a number with a unit, for example 500ms, 10s or 1m30s"
        )


def parse_ns(text: str) -> int:
    """Return the nanoseconds of a duration string; raise DurationError."""
    if len(text) > _LONGEST_TEXT:
        raise DurationError(f"{text[:_LONGEST_TEXT]}…", "too many digits")
    end = 0
    total = Fraction(0)
    for term in _TERM.finditer(text):
        if term.start() != end:
            break
        total += Fraction(term[1]) * NS_PER_UNIT[term[2]]
        end = term.end()
    if not text or end != len(text):
        raise DurationError(text)
    if total > LONGEST_NS:
        raise DurationError(text, "longer than 292 years")
    return round(total)


def parse_s(text: str) -> float:
    """Return the seconds of a duration string; raise DurationError."""
    return parse_ns(text) / 1e9


def format_ns(duration_ns: int) -> str:
    """Format a duration for people: three significant digits and one unit, as `1.25ms`."""
    for unit, smaller in (("s", "ms"), ("ms", "us"), ("us", "ns")):
        # A value that rounds to 1000 of the smaller unit is 1 of this one.
        if duration_ns >= NS_PER_UNIT[unit] - NS_PER_UNIT[smaller] / 2:
            return f"{_three_digits(duration_ns / NS_PER_UNIT[unit])}{unit}"
    return f"{duration_ns}ns"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
