"""Duration strings: Go's, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.durations import (
    LONGEST_NS,
    DurationError,
    format_ns,
    parse_ns,
    parse_s,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("64ns", 64),
        ("800us", 800_000),
        ("800µs", 800_000),
        ("250ms", 250_000_000),
        ("1.5s", 1_500_000_000),
        ("10s", 10_000_000_000),
        ("1h15m", 4_500_000_000_000),
        ("0s", 0),
        ("0.1s0.2s", 300_000_000),
        ("2562047h47m16.854775807s", LONGEST_NS),
    ],
)
def test_a_duration_string_is_its_nanoseconds(text: str, ns: int) -> None:
    assert parse_ns(text) == ns
    assert parse_s(text) == ns / 1e9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "s",
        "10 s",
        "-5s",
        "10s ",
        "1.s",
        ".5s",
        "1e3s",
        "10sec",
        "10s5",
        "٣s",
        "ten",
        "\n",
    ],
)
def test_an_invalid_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DurationError, match="for example 500ms, 10s or 1m30s") as refused:
        parse_ns(text)
    assert refused.value.text == text


@pytest.mark.parametrize("text", ["9" * 60 + "h", "2562047h47m16.854775808s", "1" * 100_000 + "s"])
def test_a_duration_that_kubernetes_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(DurationError, match=r"longer than 292 years|too many digits"):
        parse_ns(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1_000, "1us"),
        (1_250_000, "1.25ms"),
        (9_994, "9.99us"),
        (9_996, "10us"),
        (99_960, "100us"),
        (999_499, "999us"),
        (999_999, "1ms"),
        (999_999_999, "1s"),
        (90_000_000_000, "90s"),
    ],
)
def test_a_duration_is_printed_with_three_digits_and_one_unit(ns: int, text: str) -> None:
    assert format_ns(ns) == text


@given(st.integers(0, LONGEST_NS // 2))
def test_a_printed_duration_reads_back_within_its_three_digits(ns: int) -> None:
    assert parse_ns(format_ns(ns)) == pytest.approx(ns, rel=0.005)
