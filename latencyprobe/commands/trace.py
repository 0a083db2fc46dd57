"""`latencyprobe trace`: slow packets, one by one, as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import grpc

from latencyprobe.commands.line_output import LineOutput
from latencyprobe.commands.packet_lines import PacketTable, json_line
from latencyprobe.commands.parameters import DURATION, MODULES, DurationType, WritableFileType
from latencyprobe.commands.run import (
    RUNTIME_FAILURE,
    command_argument,
    exit_status_of,
    filter_options,
    target_of,
    target_options,
    targets_of,
    verbose_option,
)
from latencyprobe.commands.terminal import OutputFormat, TerminalObserver, say
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.packets import LONGEST_NS, TracedPacket
from latencyprobe.domain.stages import BY_NAME, PACKET_STAGES, Module
from latencyprobe.local.command_process import StoppedCommand
from latencyprobe.local.measuring import RunOutcome, measure
from latencyprobe.local.session import MeasurementRequest
from latencyprobe.local.trace_session import Limits, TraceSession

DEFAULT_RATE = 1000
EXAMPLES = """\
\b
Examples:
  latencyprobe trace --pid 4242 --min 2ms
  latencyprobe trace --pid 4242 --stage rx.socket --min 500us --port 443
  latencyprobe trace --netns /var/run/netns/blue --modules tx --min 1ms --duration 30s
  latencyprobe trace --pid 4242 --min 5ms --count 1
  latencyprobe trace --pid 4242 -o json | jq -c 'select(.stagesNs["rx.stack"] > 100000)'
  latencyprobe trace --min 0ns --output-file packets.txt -- curl -sO https://example.org/

Each line is a packet: the time at which its last stage ended, the process that read or sent it, and
its stages. The stages add up to the total. A process is "-" if a softirq sent the packet, and no
process has used its socket since the trace began. A stage is "-" if the packet did not pass it, for
example rx.host without a host device.

The lines go to standard output, everything else to standard error. A COMMAND shares standard
output: the table then goes to standard error. Use --output-file to keep it separate.

The last line on standard error counts the packets that reached the limit. It also counts those that
were printed, those over --max-rate, and those lost because the ring buffer was full.

Exit status: as `latencyprobe run`.
"""


class StageType(click.ParamType[str]):
    """The name of a stage that a single packet has."""

    name = "stage"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the name; an error lists the known names."""
        name, known = str(value), ", ".join(stage.name for stage in PACKET_STAGES)
        if name not in BY_NAME:
            self.fail(f"unknown stage {name!r}; choose one of {known}", param, ctx)
        if BY_NAME[name] not in PACKET_STAGES:
            self.fail(f"{name} cannot be traced per packet; choose one of {known}", param, ctx)
        return name


@dataclass(frozen=True, slots=True)
class TracePresentation:
    """The options for showing a trace. `most`: the number of packets after which it ends."""

    output: OutputFormat
    output_file: Path | None
    most: int | None
    quiet: bool
    verbose: bool


@click.command("trace", epilog=EXAMPLES)
@target_options
@click.option(
    "--min",
    "min_ns",
    type=DurationType(shortest_ns=0, longest_ns=LONGEST_NS),
    default="1ms",
    show_default=True,
    help="Print packets that took at least this long; 0ns for all.",
)
@click.option(
    "--stage",
    "stages",
    type=StageType(),
    metavar="NAME",
    multiple=True,
    help="Stage to compare with --min; repeatable.  [default: rx.total, tx.total]",
)
@click.option(
    "--modules",
    type=MODULES,
    help="Modules to measure, separated by commas.  [default: those of --stage, or rx,tx]",
)
@filter_options
@click.option("--duration", type=DURATION, help="Duration of the trace.  [default: until Ctrl-C]")
@click.option(
    "--count",
    "most",
    type=click.IntRange(min=1),
    help="End the trace after this number of packets.",
)
@click.option(
    "--max-rate",
    type=click.IntRange(min=0),
    default=DEFAULT_RATE,
    show_default=True,
    metavar="N",
    help="Print at most this number of packets per second; 0 for no limit.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice([str(each) for each in OutputFormat]),
    default=str(OutputFormat.TABLE),
    show_default=True,
    help="Format of the lines: aligned columns, or one JSON document a line.",
)
@click.option(
    "--output-file",
    type=WritableFileType(),
    help="Write the lines to this file instead of standard output.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress, only the closing line.")
@verbose_option
@command_argument
def trace_command(
    *,
    pids: tuple[int, ...],
    cgroups: tuple[str, ...],
    netnses: tuple[str, ...],
    min_ns: int,
    stages: tuple[str, ...],
    modules: tuple[Module, ...] | None,
    ports: tuple[int, ...],
    protocols: tuple[str, ...],
    duration: int | None,
    most: int | None,
    max_rate: int,
    output: str,
    output_file: Path | None,
    quiet: bool,
    verbose: bool,
    command: tuple[str, ...],
) -> None:
    """Print packets that took longer than a limit, one by one, with all their stages.

    Select targets with --pid, --cgroup or --netns. Each can be repeated, and includes the processes
    that a target starts. Or give a COMMAND: it is started, and traced from its first packet.
    """
    targets = targets_of(pids, cgroups, netnses, command)
    modules = modules or default_modules(stages)
    limits = Limits(dict.fromkeys(traced_stages(stages, modules), min_ns), max_rate)
    request = MeasurementRequest(targets, modules, ports, protocols)
    presentation = TracePresentation(OutputFormat(output), output_file, most, quiet, verbose)
    sys.exit(exit_status_of(lambda: _Trace(request, limits, presentation).run(duration, command)))


def default_modules(stages: Sequence[str]) -> tuple[Module, ...]:
    """Return the modules that measure these stages; without stages, all that measure packets."""
    wanted = [BY_NAME[name] for name in stages] or [s for s in PACKET_STAGES if s.whole is None]
    modules = {module for stage in wanted for module in stage.modules}
    return tuple(module for module in Module if module in modules)


def traced_stages(stages: Sequence[str], modules: Sequence[Module]) -> tuple[str, ...]:
    """Return the stages to compare with the limit, each once.

    Without names, return the totals that these modules measure. Raise UsageError for a stage that
    they do not measure.
    """
    for name in stages:
        stage = BY_NAME[name]
        if not stage.is_measured_by(modules):
            raise click.UsageError(
                f"--stage {name} needs module {stage.needs}, but --modules is {','.join(modules)}; "
                f"add the module or omit --modules"
            )
    if stages:
        return tuple(dict.fromkeys(stages))
    totals = [stage for stage in PACKET_STAGES if stage.whole is None]
    found = tuple(stage.name for stage in totals if stage.module in modules)
    if not found:
        needed = " or ".join(dict.fromkeys(stage.module for stage in totals))
        raise click.UsageError(
            f"--modules {','.join(modules)} cannot be traced per packet; add {needed}"
        )
    return found


class _Trace:
    """One trace, from its start to its closing line."""

    def __init__(
        self, request: MeasurementRequest, limits: Limits, presentation: TracePresentation
    ) -> None:
        self._request = request
        self._limits = limits
        self._presentation = presentation
        self._session: TraceSession | None = None
        self._printed = 0
        self._failure: OSError | None = None

    def run(self, duration_ns: int | None, argv: Sequence[str]) -> int:
        """Run the trace; return the exit status."""
        if not argv:
            outcome = asyncio.run(self._follow(duration_ns, None))
            return self._close(outcome)
        with contextlib.closing(StoppedCommand(argv)) as command:
            targets = (*self._request.targets, target_of(command))
            self._request = replace(self._request, targets=targets)
            outcome = asyncio.run(self._follow(duration_ns, command))
        return self._close(outcome)

    async def _follow(self, duration_ns: int | None, command: StoppedCommand | None) -> RunOutcome:
        observer = TerminalObserver(quiet=self._presentation.quiet, live=False, interval_s=1)
        with self._descriptor(with_command=command is not None) as descriptor:
            async with LineOutput(descriptor) as output:
                printer = _Printer(output, self._presentation, descriptor)
                try:
                    return await measure(
                        self._request,
                        observer,
                        duration_s=None if duration_ns is None else duration_ns / 1e9,
                        command=command,
                        show_log=self._presentation.verbose,
                        make_session=lambda channel, request: self._make_session(
                            channel, request, printer
                        ),
                        is_enough=printer.is_enough,
                    )
                finally:
                    self._printed, self._failure = printer.printed, printer.failure

    def _make_session(
        self, channel: grpc.aio.Channel, request: MeasurementRequest, printer: _Printer
    ) -> TraceSession:
        self._session = TraceSession(channel, request, self._limits, printer.print)
        return self._session

    @contextmanager
    def _descriptor(self, *, with_command: bool) -> Iterator[int]:
        """Open the destination of the lines; yield its descriptor."""
        path, output = self._presentation.output_file, self._presentation.output
        if path is not None:
            with path.open("wb") as file:
                yield file.fileno()
        elif with_command and output is OutputFormat.TABLE:
            yield sys.stderr.fileno()
        else:
            yield sys.stdout.fileno()

    def _close(self, outcome: RunOutcome) -> int:
        """Print the closing lines; return the exit status."""
        assert self._session is not None
        if outcome.command_status is None:
            for farewell in self._session.farewells:
                say(farewell)
        for sentence in self._accounts(outcome):
            say(sentence)
        if self._failure is not None:
            say(f"error: cannot write the packets: {self._failure.strerror}")
            return outcome.command_status or RUNTIME_FAILURE
        if outcome.failure:
            say(f"error: the trace ended early: {outcome.failure}")
            return outcome.command_status or RUNTIME_FAILURE
        return outcome.command_status or 0

    def _accounts(self, outcome: RunOutcome) -> Iterator[str]:
        assert self._session is not None
        counts = self._session.counts
        limits_ns = self._limits.stages_ns
        yield (
            f"{counts.seen:,} packets of {format_ns(min(limits_ns.values()))} or more in "
            f"{' or '.join(limits_ns)}: {self._printed:,} printed, "
            f"{counts.limited:,} over the rate limit, {counts.lost:,} lost"
            + _more(counts.reported - self._printed, ", {} not printed")
        )
        if self._session.sampling_ratio < 1:
            yield f"only {self._session.sampling_ratio:.1%} of the packets were sampled"
        untimed = _untimed(outcome, self._request.modules)
        if untimed:
            yield f"{untimed:,} more packets could not be timed (lost or unmatched: see `run`)"


def _more(count: int, text: str) -> str:
    return text.format(f"{count:,}") if count > 0 else ""


def _untimed(outcome: RunOutcome, modules: Iterable[Module]) -> int:
    """Count the packets without complete stages."""
    wanted = set(modules)
    return sum(
        stage.lost + stage.unmatched
        for target in outcome.report.targets
        for stage in target.report.stages
        if BY_NAME[stage.name] in PACKET_STAGES and BY_NAME[stage.name].module in wanted
    )


class _Printer:
    """A printer of packets, until the requested number is reached or the reader has exited."""

    def __init__(
        self, output: LineOutput, presentation: TracePresentation, descriptor: int
    ) -> None:
        self._output = output
        self._most = presentation.most
        self._line: Callable[[TracedPacket], str] = json_line
        self._header = ""
        if presentation.output is OutputFormat.TABLE:
            colour = os.isatty(descriptor) and not os.environ.get("NO_COLOR")
            table = PacketTable(colour=colour)
            self._line = table.line
            self._header = table.header() + "\n"
        self.printed = 0
        self.failure: OSError | None = None
        self.is_enough = output.is_gone

    async def print(self, packets: Sequence[TracedPacket]) -> None:
        """Print these packets; drop all that follow the end."""
        for packet in packets:
            if self.is_enough.is_set():
                return
            await self._write(packet)

    async def _write(self, packet: TracedPacket) -> None:
        text = f"{self._header}{self._line(packet)}\n"
        try:
            is_written = await self._output.write(text)
        except OSError as error:
            self.failure = error
            self.is_enough.set()
            return
        self._header = ""
        self.printed += is_written
        if self._most is not None and self.printed >= self._most:
            self.is_enough.set()
