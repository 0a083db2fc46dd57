"""`latencyprobe run`: measure processes, cgroups or a command on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click

from latencyprobe.commands.parameters import (
    CPU_PERCENT,
    DEFAULT_MODULES_TEXT,
    DURATION,
    INTERVAL,
    MODULES,
    PID,
    PORT,
    PROTOCOL,
    WritableFileType,
)
from latencyprobe.commands.terminal import (
    OutputFormat,
    TerminalObserver,
    can_show_live,
    say,
    write_report,
    write_report_to,
)
from latencyprobe.domain.stages import Module, check_filter
from latencyprobe.local.agent_process import AgentError
from latencyprobe.local.command_process import CommandError, StoppedCommand
from latencyprobe.local.measuring import InterruptedBeforeError, RunOutcome, measure
from latencyprobe.local.session import (
    CgroupTarget,
    MeasurementRequest,
    NetnsTarget,
    NoTargetError,
    PidTarget,
    ProtocolVersionError,
    TargetSpec,
)
from latencyprobe.printable import printable
from latencyprobe.process.capabilities import MissingCapabilityError, require_capabilities

RUNTIME_FAILURE = 1
EXAMPLES = """\
\b
Examples:
  latencyprobe run --pid 4242
  latencyprobe run --pid 4242 --pid 4243 --port 443 --duration 30s
  latencyprobe run --cgroup /sys/fs/cgroup/system.slice/nginx.service
  latencyprobe run --netns /var/run/netns/blue --modules rx,tcp
  latencyprobe run -- curl -sO https://example.org/
  latencyprobe run -o json --duration 10s --pid 4242 | jq '.targets[0].verdict'
  latencyprobe run -o json --output-file report.json -- ./client | sort

The report goes to standard output, everything else to standard error. A COMMAND shares standard
output: the table then goes to standard error, and JSON follows the command's output. Use
--output-file to keep the report separate.

Exit status: that of the COMMAND, if there is one (128 + n for signal n). When --duration is over,
the COMMAND is terminated and the status is 0. Ctrl-C ends the measurement and prints the report;
the status is 0. Status 1: nothing could be measured. Status 2: wrong usage.
"""


@dataclass(frozen=True, slots=True)
class RunPresentation:
    """The options for showing a run."""

    output: OutputFormat
    output_file: Path | None
    quiet: bool
    verbose: bool
    live: bool


# Options that `demo` has too.
interval_option = click.option(
    "--interval",
    type=INTERVAL,
    default="1s",
    show_default=True,
    help="Refresh interval of the live view.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice([str(each) for each in OutputFormat]),
    default=str(OutputFormat.TABLE),
    show_default=True,
    help="Format of the report.",
)
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Show the agent's log instead of the live view."
)


Function = TypeVar("Function", bound=Callable[..., object])


def _together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Combine several options into one decorator, in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Options that `trace` has too.
target_options = _together(
    click.option(
        "--pid",
        "pids",
        type=PID,
        metavar="N",
        multiple=True,
        help="Measure this process and its descendants.",
    ),
    click.option(
        "--cgroup",
        "cgroups",
        metavar="PATH",
        multiple=True,
        help="Measure the cgroup of this directory and all cgroups below it.",
    ),
    click.option(
        "--netns",
        "netnses",
        metavar="PATH",
        multiple=True,
        help="Measure every socket of this network namespace.",
    ),
)
filter_options = _together(
    click.option(
        "--port",
        "ports",
        type=PORT,
        metavar="N",
        multiple=True,
        help="Measure only this port, local or remote.",
    ),
    click.option(
        "--protocol", "protocols", type=PROTOCOL, multiple=True, help="Measure only this protocol."
    ),
)
command_argument = click.argument(
    "command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ARG...]"
)


@click.command("run", epilog=EXAMPLES)
@target_options
@click.option(
    "--modules",
    type=MODULES,
    default=DEFAULT_MODULES_TEXT,
    show_default=True,
    help=f"Modules to measure, separated by commas: {', '.join(Module)}.",
)
@filter_options
@click.option(
    "--duration", type=DURATION, help="Duration of the measurement.  [default: until Ctrl-C]"
)
@interval_option
@click.option(
    "--max-cpu-percent",
    type=CPU_PERCENT,
    default=0.0,
    metavar="N",
    help="Budget of the eBPF programs, in percent of one core: sample packets to keep it.  "
    "[default: no limit]",
)
@output_option
@click.option(
    "--output-file",
    type=WritableFileType(),
    help="Write the report to this file instead of standard output.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress and no live view.")
@verbose_option
@command_argument
def run_command(
    *,
    pids: tuple[int, ...],
    cgroups: tuple[str, ...],
    netnses: tuple[str, ...],
    modules: tuple[Module, ...],
    ports: tuple[int, ...],
    protocols: tuple[str, ...],
    duration: int | None,
    interval: int,
    max_cpu_percent: float,
    output: str,
    output_file: Path | None,
    quiet: bool,
    verbose: bool,
    command: tuple[str, ...],
) -> None:
    """Measure where the network latency of running processes goes.

    Select targets with --pid, --cgroup or --netns. Each can be repeated, and includes the processes
    that a target starts. Or give a COMMAND: it is started, and measured from its first packet.
    """
    targets = targets_of(pids, cgroups, netnses, command)
    try:
        check_filter(modules, protocols)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    presentation = RunPresentation(
        output=OutputFormat(output),
        output_file=output_file,
        quiet=quiet,
        verbose=verbose,
        live=output == OutputFormat.TABLE and not (quiet or verbose or command) and can_show_live(),
    )
    request = MeasurementRequest(targets, modules, ports, protocols, interval, max_cpu_percent)
    sys.exit(exit_status_of(lambda: _run(request, presentation, duration, command)))


def exit_status_of(measurement: Callable[[], int]) -> int:
    """Return the exit status of a measurement; print the errors that a user can act on."""
    try:
        require_capabilities()
        return measurement()
    except (MissingCapabilityError, AgentError, NoTargetError, ProtocolVersionError) as error:
        say(f"error: {error}")
        return RUNTIME_FAILURE
    except CommandError as error:
        say(f"error: {error}")
        return error.status
    except InterruptedBeforeError as error:
        say(str(error))
        return 128 + error.signal_number


def _run(
    request: MeasurementRequest,
    presentation: RunPresentation,
    duration_ns: int | None,
    argv: Sequence[str],
) -> int:
    if not argv:
        outcome = asyncio.run(_measure(request, presentation, duration_ns, None))
        return report_outcome(outcome, presentation, with_command=False)
    with contextlib.closing(StoppedCommand(argv)) as command:
        request = replace(request, targets=(*request.targets, target_of(command)))
        outcome = asyncio.run(_measure(request, presentation, duration_ns, command))
    return report_outcome(outcome, presentation, with_command=True)


def target_of(command: StoppedCommand) -> PidTarget:
    """Return the command as a target."""
    name = printable(Path(command.argv[0]).name)
    return PidTarget(f"{name}[{command.pid}]", command.pid)


async def _measure(
    request: MeasurementRequest,
    presentation: RunPresentation,
    duration_ns: int | None,
    command: StoppedCommand | None,
) -> RunOutcome:
    observer = TerminalObserver(
        quiet=presentation.quiet,
        live=presentation.live,
        interval_s=request.interval_ns / 1e9,
    )
    with observer.watching():
        return await measure(
            request,
            observer,
            duration_s=None if duration_ns is None else duration_ns / 1e9,
            command=command,
            show_log=presentation.verbose,
        )


def report_outcome(
    outcome: RunOutcome, presentation: RunPresentation, *, with_command: bool
) -> int:
    """Write the report to its destination; return the exit status."""
    output = presentation.output
    path = presentation.output_file
    if path is None or not _is_written(path, outcome, output):
        is_beside_output = with_command and output is OutputFormat.TABLE
        write_report(outcome.report, output, sys.stderr if is_beside_output else sys.stdout)
    if outcome.failure:
        say(f"error: the measurement ended early: {outcome.failure}")
        return outcome.command_status or RUNTIME_FAILURE
    return outcome.command_status or 0


def _is_written(path: Path, outcome: RunOutcome, output: OutputFormat) -> bool:
    """Write the report to the file; print an error and return False if that fails."""
    try:
        write_report_to(path, outcome.report, output)
    except OSError as error:
        say(f"error: cannot write {str(path)!r}: {error.strerror}; the report is printed instead")
        return False
    return True


def targets_of(
    pids: Sequence[int], cgroups: Sequence[str], netnses: Sequence[str], command: Sequence[str]
) -> tuple[TargetSpec, ...]:
    """Return the targets, each once, by kind; raise UsageError if there is no target or command."""
    if not (pids or cgroups or netnses or command):
        raise click.UsageError(
            "no target to measure: give --pid N, --cgroup PATH, --netns PATH or -- COMMAND"
        )
    return (
        *(PidTarget(_process_name(pid), pid) for pid in dict.fromkeys(pids)),
        *(CgroupTarget(printable(path), _absolute(path)) for path in dict.fromkeys(cgroups)),
        *(NetnsTarget(printable(path), _absolute(path)) for path in dict.fromkeys(netnses)),
    )


def _absolute(path: str) -> str:
    """Make a path absolute, since the agent accepts no other."""
    return str(Path.cwd() / path)


def _process_name(pid: int) -> str:
    try:
        # Not as text, which would turn a carriage return into the end of a line.
        comm = Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")
    except OSError:
        # The agent reports the problem with this process.
        return f"pid {pid}"
    return f"{printable(comm.decode(errors='replace'))}[{pid}]"
