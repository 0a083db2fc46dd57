"""The rate that programs in wide use keep: beside a target, and as targets.

A server and its client are pods behind a bridge. Either a third pod, which is idle, is the target,
so that both are strangers; or both are targets. Each slice of time with our programs is compared
with the mean of those before and after it. The kernel's run-time statistics are off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.outcome import Outcome
from bench.pods import Node, node
from bench.programs import foreign_programs
from bench.ratio import Spread, verdict
from bench.real_programs import PROGRAMS, Load, serving
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

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
    bar = progress.add_task("neighbours", total=rounds * len(PROGRAMS))
    ratios: dict[tuple[str, str], list[float]] = {}
    unprobed: dict[str, list[float]] = {}
    for program in PROGRAMS:
        program.require()
    with node() as pods, tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        parts = _parts(pods)
        # Without a cache each slice with our programs would begin with a compilation.
        engine = KernelEngine(host_netns=pods.host.inode, cache=ObjectCache(Path(objects)))
        try:
            for program in PROGRAMS:
                with serving(program, pods.server, pods.client) as load:
                    rates = unprobed[program.name] = [load.measured()]
                    for _ in range(rounds):
                        for part in parts:
                            probed = await _probed(engine, part, load)
                            rates.append(load.measured())
                            ratio = 2 * probed / (rates[-2] + rates[-1])
                            ratios.setdefault((program.name, part.name), []).append(ratio)
                        progress.advance(bar)
        finally:
            await engine.close()
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


async def _probed(engine: KernelEngine, part: Part, load: Load) -> float:
    engine.assign(part.slots)
    await engine.use(frozenset(DEFAULT_MODULES))
    engine._clock.stop()
    try:
        return load.measured()
    finally:
        await engine.use(frozenset())


def _outcome(
    parts: Sequence[Part],
    ratios: Mapping[tuple[str, str], Sequence[float]],
    unprobed: Mapping[str, Sequence[float]],
    foreign: int,
) -> Outcome:
    table = Table(title="The rate that programs keep, probed : unprobed")
    for heading in ("program", "as", "ratio: median (least to most)", "target", ""):
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
