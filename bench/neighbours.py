"""The rate that programs in wide use keep: beside a target, and as targets.

A server and its client are pods behind a bridge. Either a third pod, which is idle, is the target,
so that both are strangers; or both are targets. The kernel's run-time statistics are off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.outcome import Outcome
from bench.pods import Node, node
from bench.probing import engine_with_cache, measuring
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, paired, verdict
from bench.real_programs import PROGRAMS, serving
from latencyprobe_agent.kernel.contract import SlotSpec

DEFAULT_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Part:
    """The part of the programs in the probe. `least`: the target ratio."""

    name: str
    least: float
    slots: Mapping[int, SlotSpec]


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all programs, one after the other."""
    foreign = foreign_programs()
    bar = progress.add_task("neighbours", total=rounds * 2 * len(PROGRAMS))
    ratios: dict[tuple[str, str], Sequence[float]] = {}
    unprobed: dict[str, Sequence[float]] = {}
    for program in PROGRAMS:
        program.require()
    with node() as pods, tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        parts = _parts(pods)
        async with engine_with_cache(pods.host.inode, Path(objects)) as engine:
            arms = {part.name: partial(measuring, engine, part.slots) for part in parts}
            for program in PROGRAMS:
                with serving(program, pods.server, pods.client) as load:
                    advance = partial(progress.advance, bar)
                    found = await paired(arms, load.measured, rounds, advance)
                unprobed[program.name] = found.unprobed
                ratios.update(
                    {(program.name, name): values for name, values in found.ratios.items()}
                )
    return _outcome(parts, ratios, unprobed, foreign)


def _parts(pods: Node) -> tuple[Part, ...]:
    busy, idle = pods.busy, frozenset({pods.idle.inode})
    targets = {
        slot: SlotSpec(netns_wide=frozenset({inode}), netns=frozenset({inode}))
        for slot, inode in enumerate(sorted(busy))
    }
    return (
        Part("strangers", 0.98, {0: SlotSpec(netns_wide=idle, netns=idle)}),
        Part("targets", 0.93, targets),
    )


def _outcome(
    parts: Sequence[Part],
    ratios: Mapping[tuple[str, str], Sequence[float]],
    unprobed: Mapping[str, Sequence[float]],
    foreign: int,
) -> Outcome:
    table = Table(title="The rate that programs keep, probed : unprobed")
    for heading in ("program", "as", f"ratio: {MEDIAN}", "target", ""):
        table.add_column(heading, justify="right" if heading.startswith("ratio") else "left")
    found = []
    for (program, name), values in ratios.items():
        spread = Spread.of(values)
        (least,) = (part.least for part in parts if part.name == name)
        is_met = spread.median >= least
        table.add_row(program, name, str(spread), f">= {least}", verdict(met=is_met))
        found.append(
            {"program": program, "as": name, **spread.document(), "target": least, "met": is_met}
        )
    remarks = ["Server and client of a program share one CPU. Their pods are behind a bridge."]
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (table, *remarks),
        {
            "foreign_programs": foreign,
            "unprobed_per_second": {
                name: Spread.of(rates).document() for name, rates in unprobed.items()
            },
            "ratios": found,
        },
    )
