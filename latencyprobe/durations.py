"""Durations as people write them: Go's duration strings, as Kubernetes uses them.

`1h15m`, `10s`, `250ms`, `1.5s`, `800us`, `64ns`. Parsed to and printed from integer nanoseconds.
"""

from __future__ import annotations

import re

NS_PER_UNIT = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


class DurationError(ValueError):
    """Text that is no duration. `text` holds it."""

    def __init__(self, text: str, problem: str = "") -> None:
        self.text = text
        super().__init__(
            f"{text!r} is not a duration{': ' + problem if problem else ''} "
            "(write a number with a unit, such as 500ms, 10s or 1m30s)"
        )


def parse_ns(text: str) -> int:
    """The nanoseconds of a duration string; raises DurationError."""
    end = 0
    total = 0.0
    for term in _TERM.finditer(text):
        if term.start() != end:
            break
        total += float(term[1]) * NS_PER_UNIT[term[2]]
        end = term.end()
    if not text or end != len(text):
        raise DurationError(text)
    return round(total)


def parse_seconds(text: str) -> float:
    """The seconds of a duration string; raises DurationError."""
    return parse_ns(text) / 1e9


def format_ns(duration_ns: int) -> str:
    """The duration for people: three significant digits and one unit, as `1.25ms`."""
    for unit in ("s", "ms", "us"):
        if duration_ns >= NS_PER_UNIT[unit]:
            return f"{_three_digits(duration_ns / NS_PER_UNIT[unit])}{unit}"
    return f"{duration_ns}ns"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
