"""The command line: one program for people, the agent and the operator.

Each subcommand is imported when it is used, so that the agent does not carry kopf's memory, and
`--help` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from latencyprobe import __version__
from latencyprobe.process import tracebacks
from latencyprobe.process.streams import escape_what_cannot_be_encoded

# Name: (module, attribute, one line of help). The line stands here so that `--help` needs none of
# the modules.
SUBCOMMANDS: Mapping[str, tuple[str, str, str]] = {
    "run": (
        "latencyprobe.commands.run",
        "run_command",
        "Measure processes, cgroups or a command on this machine.",
    ),
    "trace": (
        "latencyprobe.commands.trace",
        "trace_command",
        "Print packets that took longer than a limit, one by one.",
    ),
    "demo": (
        "latencyprobe.commands.demo",
        "demo_command",
        "Measure a client and a server in two network namespaces, as a demonstration.",
    ),
    "agent": (
        "latencyprobe_agent.cli",
        "agent_command",
        "Serve measurements of this node over gRPC.",
    ),
    "operator": (
        "latencyprobe_operator.cli",
        "operator_command",
        "Reconcile LatencyProbe objects in a Kubernetes cluster.",
    ),
    "release-probes": (
        "latencyprobe_operator.release",
        "release_command",
        "Remove the finalizers of LatencyProbes after the operator is gone.",
    ),
    "pki": (
        "latencyprobe.commands.pki",
        "pki_command",
        "Make the certificates of operator and agents.",
    ),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only to run it or to show its own help."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, with streams and tracebacks that take any name."""
        tracebacks.make_printable()
        escape_what_cannot_be_encoded()
        return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, then the commands that are defined here."""
        return [*SUBCOMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the subcommand; return None for an unknown name."""
        if cmd_name not in SUBCOMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = SUBCOMMANDS[cmd_name]
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            # The container images hold what their own side needs, and no more.
            raise click.ClickException(
                f"`latencyprobe {cmd_name}` is not available: this installation lacks the Python "
                f"module {error.name}"
            ) from None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands without importing any."""
        del ctx
        rows = [(name, line) for name, (_, _, line) in SUBCOMMANDS.items()]
        rows += [(name, command.get_short_help_str()) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\
\b
Examples:
  latencyprobe demo                      measure an example on this machine
  latencyprobe run --pid 4242            show where a process's latency goes
  latencyprobe trace --pid 4242          show packets that take over 1 ms
  latencyprobe run -- curl example.org   measure a command from its first packet
  latencyprobe COMMAND --help            show the options of a command
""",
)
@click.version_option(__version__, prog_name="latencyprobe")
def main() -> None:
    """Measure where the time of network packets goes, from the NIC to the application."""


@main.command("version")
def version_command() -> None:
    """Print the version."""
    click.echo(f"latencyprobe, version {__version__}")


if __name__ == "__main__":
    main(prog_name="latencyprobe")
