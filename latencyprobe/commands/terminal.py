"""Output of a run for people: progress and live view on stderr, the report at its destination.

Standard output holds the report alone, so that it can be piped. Colours appear on a terminal only,
and not if NO_COLOR is set.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.live import Live

from latencyprobe.commands.render import render_live, render_report
from latencyprobe.domain.document import LatencyReport
from latencyprobe.domain.serialisation import document_of
from latencyprobe.printable import printable_lines
from latencyprobe.process.streams import ESCAPE

# Of a report that goes to a file or a pipe.
WIDTH_OFF_A_TERMINAL = 120


class OutputFormat(StrEnum):
    """A format of the report."""

    TABLE = "table"
    JSON = "json"


def say(text: str) -> None:
    """Write progress, a warning or an error to standard error, printable."""
    click.echo("\n".join(printable_lines(f"latencyprobe: {text}")), err=True)


def write_report(report: LatencyReport, output: OutputFormat, stream: TextIO) -> None:
    """Write the whole final report."""
    if output is OutputFormat.JSON:
        json.dump(document_of(report), stream, indent=2)
        stream.write("\n")
    else:
        width = None if stream.isatty() else WIDTH_OFF_A_TERMINAL
        Console(file=stream, width=width, highlight=False).print(render_report(report))
    stream.flush()


def write_report_to(path: Path, report: LatencyReport, output: OutputFormat) -> None:
    """Write the final report as the only content of a file."""
    with path.open("w", encoding="utf-8", errors=ESCAPE) as stream:
        write_report(report, output, stream)


class TerminalObserver:
    """An observer that shows a run on standard error, with a live view if wanted and possible."""

    def __init__(self, *, quiet: bool, live: bool, interval_s: float) -> None:
        self._quiet = quiet
        self._wants_live = live
        self._interval_s = interval_s
        self._live: Live | None = None
        self._began_at = 0.0
        self._shown_at = 0.0

    @contextmanager
    def watching(self) -> Iterator[TerminalObserver]:
        """Observe the run, and remove the live view from the terminal afterwards."""
        try:
            yield self
        finally:
            if self._live:
                self._live.stop()

    def attaching(self) -> None:
        """Report that the agent starts and attaches."""
        self._began_at = time.monotonic()
        self._say("attaching…")

    def attached(self, problems: Sequence[str]) -> None:
        """Report that packets are measured from now on."""
        for problem in problems:
            say(f"warning: not measured: {problem}")
        self._say(f"attached in {time.monotonic() - self._began_at:.1f} s, measuring")
        if self._wants_live:
            console = Console(stderr=True, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()

    def updated(self, report: LatencyReport) -> None:
        """Show a new report, once an interval."""
        now = time.monotonic()
        # Reports come a little early or late; half a second of it is no reason to skip one.
        if self._live and now - self._shown_at > self._interval_s * 0.75:
            self._shown_at = now
            self._live.update(render_live(report), refresh=True)

    def _say(self, text: str) -> None:
        if not self._quiet:
            say(text)


def can_show_live() -> bool:
    """Return True if standard error is a terminal that can redraw lines."""
    return sys.stderr.isatty() and Console(stderr=True).is_terminal
