"""`python -m bench [NAME...]`: run benchmarks and print what they found."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from bench import (
    apply,
    budget,
    contention,
    domain,
    hooks,
    maps,
    memory,
    neighbours,
    other_tools,
    paths,
    runs,
    sampled,
    throughput,
)
from bench.outcome import CannotMeasureError, Outcome
from latencyprobe_agent.kernel.contract import EngineError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark by its name. `rounds` is the default number."""

    run: Callable[[int, Progress], Awaitable[Outcome]]
    rounds: int
    meaning: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "hooks": Benchmark(
        hooks.run, hooks.DEFAULT_ROUNDS, "the cost of each program for a packet, in empty programs"
    ),
    "throughput": Benchmark(
        throughput.run, throughput.DEFAULT_ROUNDS, "TCP requests and responses, probed : unprobed"
    ),
    "neighbours": Benchmark(
        neighbours.run,
        neighbours.DEFAULT_ROUNDS,
        "real programs as strangers and as targets, probed : unprobed",
    ),
    "budget": Benchmark(
        budget.run,
        budget.DEFAULT_ROUNDS,
        "real programs as targets with the default budget, probed : unprobed",
    ),
    "sampled": Benchmark(
        sampled.run, sampled.DEFAULT_ROUNDS, "percentiles of 1 packet in 16 beside those of all"
    ),
    "paths": Benchmark(
        paths.run, paths.DEFAULT_ROUNDS, "TCP requests and responses of pods, by bridge and NIC"
    ),
    "runs": Benchmark(
        runs.run,
        runs.DEFAULT_ROUNDS,
        "programs that run for a packet or message of a stranger",
    ),
    "tools": Benchmark(
        other_tools.run,
        other_tools.DEFAULT_ROUNDS,
        "bpftrace and tools of bcc beside ours, on the same traffic",
    ),
    "contention": Benchmark(
        contention.run, contention.DEFAULT_ROUNDS, "two CPUs that count for one target"
    ),
    "apply": Benchmark(
        apply.run, apply.DEFAULT_ROUNDS, "Apply to attached, warm and cold, also with busy CPUs"
    ),
    "memory": Benchmark(
        memory.run, memory.DEFAULT_ROUNDS, "memory and idle CPU of the agent, its compiler, maps"
    ),
    "maps": Benchmark(
        maps.run, maps.DEFAULT_ROUNDS, "bytes of all maps, with BTF and without, on 96 CPUs too"
    ),
    "domain": Benchmark(
        domain.run, domain.DEFAULT_ROUNDS, "merging and reporting 10,000 pods, as the operator does"
    ),
}
_LIST = "\b\nBenchmarks:\n" + "\n".join(
    f"  {name:<12}{each.meaning}; {each.rounds} rounds" for name, each in BENCHMARKS.items()
)


@click.command(epilog=_LIST, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(BENCHMARKS)))
@click.option("--rounds", type=click.IntRange(min=1), help="Number of measurements of each thing.")
@click.option("--json", "as_json", is_flag=True, help="Print a document, not tables.")
def main(*, names: tuple[str, ...], rounds: int | None, as_json: bool) -> None:
    """Measure the cost of measuring (needs root), with all benchmarks unless some are named.

    A missed target is shown; it is not a failure.
    """
    # as an exception, so that namespaces and processes of ours are taken down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    documents: dict[str, Any] = {}
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for name in dict.fromkeys(names or BENCHMARKS):
        benchmark = BENCHMARKS[name]
        try:
            outcome = _run(benchmark, rounds or benchmark.rounds)
        except (CannotMeasureError, EngineError) as error:
            raise click.ClickException(f"{name}: {error}") from None
        documents[name] = outcome.document
        if not as_json:
            for shown in outcome.shown:
                console.print(shown)
    if as_json:
        click.echo(json.dumps(documents, indent=2))


def _run(benchmark: Benchmark, rounds: int) -> Outcome:
    async def run() -> Outcome:
        return await benchmark.run(rounds, progress)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        return asyncio.run(run())


if __name__ == "__main__":
    main()
