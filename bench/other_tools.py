"""Other tools beside ours on the same traffic: requests and responses of pods behind a bridge.

Each tool runs as it is, so that it measures all packets or connections of the machine. Where this
kernel refuses one, its own message stands in place of a ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bench import bcc_tools
from bench.bpftrace import bpftrace, is_installed
from bench.outcome import CannotMeasureError, Outcome
from bench.paths import BRIDGE, STRANGERS, TARGETS, rate, scene
from bench.probing import engine_with_cache, measuring
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Paired, Spread, paired

DEFAULT_ROUNDS = 15
OURS = {STRANGERS: "latencyprobe, an idle pod", TARGETS: "latencyprobe, these pods"}
_OUR_STAGES = "all of rx, tx, tcp"
Run = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Tool:
    """Another tool. `nearest`: the stages of ours that are nearest to its figures."""

    name: str
    nearest: str
    run: Run


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure ours and all others that run here in turns."""
    foreign = foreign_programs()
    with ExitStack() as stack:
        made = stack.enter_context(scene())
        objects = stack.enter_context(tempfile.TemporaryDirectory(prefix="latencyprobe-bench-"))
        one_slice = partial(rate, made.sources[BRIDGE])
        tools = _tools(stack.enter_context(bcc_tools.headers()))
        refused = {tool.name: message for tool in tools if (message := _refusal(tool, one_slice))}
        others = [tool for tool in tools if tool.name not in refused]
        bar = progress.add_task("tools", total=rounds * (len(OURS) + len(others)))
        async with engine_with_cache(made.pods.host.inode, Path(objects)) as engine:
            found = await paired(
                {
                    **{
                        name: partial(measuring, engine, made.slots[part])
                        for part, name in OURS.items()
                    },
                    **{tool.name: partial(_beside, tool.run) for tool in others},
                },
                one_slice,
                rounds,
                partial(progress.advance, bar),
            )
    nearest = {**dict.fromkeys(OURS.values(), _OUR_STAGES), **{t.name: t.nearest for t in tools}}
    return _outcome(nearest, found, refused, foreign)


def _tools(environment: Mapping[str, str]) -> tuple[Tool, ...]:
    return (
        Tool("bpftrace, latency.bt", "rx.softirq to rx.total, tx.qdisc", _bpftrace),
        *(
            Tool(tool.program, tool.nearest, partial(bcc_tools.running, tool, environment))
            for tool in bcc_tools.BCC_TOOLS
        ),
    )


def _bpftrace() -> AbstractContextManager[None]:
    if not is_installed():
        raise CannotMeasureError("bpftrace is not installed: install bpftrace")
    return bpftrace()


def _refusal(tool: Tool, one_slice: Callable[[], float]) -> str:
    """Return the message of a tool that does not run here; empty if it does."""
    try:
        with tool.run():
            one_slice()
    except CannotMeasureError as error:
        return str(error)
    return ""


@asynccontextmanager
async def _beside(run: Run) -> AsyncIterator[None]:
    with run():
        yield


def _outcome(
    nearest: Mapping[str, str], found: Paired, refused: Mapping[str, str], foreign: int
) -> Outcome:
    table = Table(title="Rate of TCP requests and responses with each tool : without any")
    for heading in ("tool", "measures, or is nearest to", f"ratio: {MEDIAN}, or why there is none"):
        table.add_column(heading)
    rows: list[dict[str, object]] = []
    for name, stages in nearest.items():
        if name in refused:
            table.add_row(name, stages, escape(refused[name]))
            rows.append({"tool": name, "nearest": stages, "refused": refused[name]})
        else:
            spread = Spread.of(found.ratios[name])
            table.add_row(name, stages, str(spread))
            rows.append({"tool": name, "nearest": stages, **spread.document()})
    unprobed = Spread.of(found.unprobed)
    remarks = [f"Without any: {unprobed.text(0)} a second."]
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (table, *remarks),
        {"foreign_programs": foreign, "unprobed_per_second": unprobed.document(), "tools": rows},
    )
