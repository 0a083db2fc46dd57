"""Types of command line parameters: one click type per kind of value, checked while parsing."""

from __future__ import annotations

import math
from pathlib import Path

import click

from latencyprobe.domain.durations import DurationError, format_ns, parse_ns
from latencyprobe.domain.stages import DEFAULT_MODULES, Module, parse_modules


class DurationType(click.ParamType[int]):
    """A duration string, as integer nanoseconds."""

    name = "duration"

    def __init__(self, *, shortest_ns: int, longest_ns: int | None = None) -> None:
        self._shortest_ns, self._longest_ns = shortest_ns, longest_ns

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the nanoseconds; click adds the option's name to an error."""
        try:
            duration_ns = parse_ns(str(value))
        except DurationError as error:
            self.fail(str(error), param, ctx)
        if duration_ns < self._shortest_ns:
            self.fail(
                f"{value} is too short: the minimum is {format_ns(self._shortest_ns)}", param, ctx
            )
        if self._longest_ns is not None and duration_ns > self._longest_ns:
            self.fail(
                f"{value} is too long: the maximum is {format_ns(self._longest_ns)}", param, ctx
            )
        return duration_ns


class ModulesType(click.ParamType[tuple[Module, ...]]):
    """Module names with commas between them."""

    name = "modules"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Module, ...]:
        """Return the modules in their order; click adds the option's name to an error."""
        if isinstance(value, tuple):
            return value
        names = [name.strip() for name in str(value).split(",")]
        try:
            return parse_modules(name for name in names if name)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class CpuPercentType(click.ParamType[float]):
    """A budget in percent of one core; 0 means no limit."""

    name = "percent"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the percentage; click adds the option's name to an error."""
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            percent = math.nan
        if not 0 <= percent < math.inf:
            self.fail(f"{value!r} is not a number of 0 or more, such as 1 or 0.5", param, ctx)
        return percent


class WritableFileType(click.ParamType[Path]):
    """A file that can be written; its present content stays until there is a new one."""

    name = "file"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path; click adds the option's name to an error."""
        path = Path(str(value))
        try:
            path.open("ab").close()
        except OSError as error:
            self.fail(f"cannot write {str(path)!r}: {error.strerror}", param, ctx)
        return path


DURATION = DurationType(shortest_ns=100_000_000)
# As the agent accepts.
INTERVAL = DurationType(shortest_ns=100_000_000, longest_ns=600_000_000_000)
MODULES = ModulesType()
CPU_PERCENT = CpuPercentType()
PORT = click.IntRange(1, 65535)
PID = click.IntRange(1, 1 << 22)
PROTOCOL = click.Choice(["TCP", "UDP"], case_sensitive=False)
DEFAULT_MODULES_TEXT = ",".join(DEFAULT_MODULES)
