"""Log lines, for people and for programs, whatever a peer puts into them."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.printable import printable
from latencyprobe.process.logs import JsonFormatter, TextFormatter

FORGED = "ok\n2026-01-01T00:00:00.000Z INFO    x: forged"
HOSTILE = "a\x1b[2J\x07\x7f\x85\x9b31m\u202e\u2066\ud800\udc80\u2028\r\t"
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ +\S+: ")


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    failure = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("a.b", logging.WARNING, "", 0, "%s", (message,), failure)
    made.created = 1_700_000_000.0789
    return made


def failed(message: str) -> Exception:
    """Return an exception that was raised."""
    with pytest.raises(OSError, match=re.escape(message)) as raised:
        raise OSError(message)
    return raised.value


def as_text(message: str, error: Exception | None = None) -> str:
    return TextFormatter().format(record(message, error))


def as_json(message: str, error: Exception | None = None) -> str:
    return JsonFormatter().format(record(message, error))


def test_a_text_line_has_time_level_logger_and_message() -> None:
    assert as_text("x 1") == "2023-11-14T22:13:20.078Z WARNING a.b: x 1"


def test_a_json_line_has_the_same_fields() -> None:
    assert json.loads(as_json("x 1")) == {
        "time": "2023-11-14T22:13:20.078Z",
        "level": "warning",
        "logger": "a.b",
        "message": "x 1",
    }


def test_an_exception_stays_readable_in_both_forms() -> None:
    error = failed("gone")
    lines = as_text("x", error).split("\n")
    fields = json.loads(as_json("x", error))

    assert lines[1] == "  Traceback (most recent call last):"
    assert lines[-1] == "  OSError: gone"
    assert fields["message"] == "x"
    assert fields["exception"].split("\n") == [line.removeprefix("  ") for line in lines[1:]]


@pytest.mark.parametrize("error", [None, failed(FORGED)], ids=["message", "exception"])
def test_a_newline_in_a_message_forges_no_line(error: Exception | None) -> None:
    lines = as_text(FORGED, error).split("\n")

    assert len([line for line in lines if TEXT_LINE.match(line)]) == 1
    assert r"ok\n2026" in lines[0]
    assert "\n" not in as_json(FORGED, error)
    assert "\n" not in json.loads(as_json(FORGED, error))["message"]


@pytest.mark.parametrize("form", [as_text, as_json])
def test_control_characters_are_visible(form: Callable[[str, Exception], str]) -> None:
    shown = form(HOSTILE, failed(HOSTILE))

    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("x1b[2J") >= 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 東京 {}\\'\"", "größe 東京 {}\\'\""),
        ("\x1b[31m", r"\x1b[31m"),
        ("\0\n\r\t", r"\x00\n\r\t"),
        ("\x7f\x80\x9b\x9f", r"\x7f\x80\x9b\x9f"),
        ("\u202e\u2066\u200f\u061c", r"\u202e\u2066\u200f\u061c"),
        ("\ud800\udc80", r"\ud800\udc80"),
        ("\u2028\ufeff\U000e0001", r"\u2028\ufeff\U000e0001"),
    ],
)
def test_an_unprintable_character_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_any_text_becomes_printable_and_printable_text_stays(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert printable(shown) == shown


def test_every_character_becomes_printable() -> None:
    assert printable("".join(map(chr, range(sys.maxunicode + 1)))).isprintable()
