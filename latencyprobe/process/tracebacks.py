"""Uncaught exceptions, on standard error with control characters as escapes.

The text of an exception may be a peer's, or the name of another user's file.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback

from latencyprobe.printable import printable, printable_lines


def make_printable() -> None:
    """Have this process write uncaught exceptions without control characters.

    That includes those of threads, of finalizers, and of tasks before there is a log. A hook that
    someone else has set stays.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _write_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _write_uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _write_unraisable
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter())


class _PrintableFormatter(logging.Formatter):
    """The message alone on a line, and the lines of the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as lines."""
        lines = [printable(record.getMessage())]
        if record.exc_info:
            lines += printable_lines(self.formatException(record.exc_info))
        return "\n".join(lines)


def _write_uncaught(_type: object, error: BaseException, _traceback: object) -> None:
    _write(error)


def _write_uncaught_in_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        _write(failed.exc_value, f"Exception in thread {failed.thread and failed.thread.name}:")


def _write_unraisable(failed: sys.UnraisableHookArgs) -> None:
    if failed.exc_value is not None:
        _write(failed.exc_value, f"{failed.err_msg or 'Exception ignored in'}: {failed.object!r}")


def _write(error: BaseException, *heads: str) -> None:
    """Write the heads and the traceback."""
    lines = printable_lines("".join(traceback.format_exception(error)).removesuffix("\n"))
    if sys.stderr is not None:
        sys.stderr.write("\n".join([*map(printable, heads), *lines, ""]))
        sys.stderr.flush()
