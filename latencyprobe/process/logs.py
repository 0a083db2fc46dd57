"""The log of a process: to standard error, as text for people or JSON for programs.

A record's message is one line in both forms, with control characters as escapes. So the text of a
peer can neither forge a line nor control a terminal. An exception has several lines; in the text
form each of them is indented.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from latencyprobe.printable import printable, printable_lines
from latencyprobe.process import tracebacks

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_INDENT = "  "


class TextFormatter(logging.Formatter):
    """A line, and the indented lines of the exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as lines."""
        head = f"{_time(record)} {record.levelname:<7} {record.name}: {_message(record)}"
        return "\n".join([head, *(_INDENT + line for line in self._exception_lines(record))])

    def _exception_lines(self, record: logging.LogRecord) -> list[str]:
        return printable_lines(self.formatException(record.exc_info)) if record.exc_info else []


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as an object."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            fields["exception"] = "\n".join(printable_lines(self.formatException(record.exc_info)))
        return json.dumps(fields, ensure_ascii=False)


def configure(*, form: str, level: str) -> None:
    """Send the log of the whole process to standard error in one of FORMATS, from one of LEVELS.

    Exceptions that nothing catches follow as text, printable too.
    """
    tracebacks.make_printable()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def _message(record: logging.LogRecord) -> str:
    return printable(record.getMessage())
