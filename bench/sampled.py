"""The percentiles of one packet in 16, beside those of all packets of the same load.

Client and server are pods behind a bridge, and both are targets. They exchange requests and
responses without a pause. Slices of time in which all packets are measured alternate with slices
of one in 16, so that both have the drift of the machine. One in 16 is as the agent has it: one
packet in 4, in a quarter of the time. A percentile is the median of those of all slices: a halt of
the machine weighs more in the few sampled packets.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import Traffic, compiled_traffic, traffic
from bench.outcome import CannotMeasureError, Outcome
from bench.pods import SERVER_ADDRESS, node
from bench.probing import MODULES, engine_with_cache, slots_of_namespaces
from bench.programs import foreign_programs
from bench.ratio import verdict
from latencyprobe.domain.durations import format_ns
from latencyprobe.domain.histogram import EMPTY, HIGHEST_NS, Histogram, bounds_of, position_of
from latencyprobe_agent.control import Effort
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 5
ALL, SAMPLED = Effort(), Effort(packets=2, slices=2)
# Those that are of single packets: others are not sampled by packets.
STAGES = ("rx.stack", "rx.socket", "rx.total", "tx.stack", "tx.total")
PERCENTS = (50, 90, 99)
# A percentile may be in the bucket beside the one that all packets have.
MOST_BUCKETS = 1
PLOTTED = "rx.total"
_SLICE_S, _SETTLE_S = 4.0, 30.0
_BAR = 48
# Buckets with a smaller part of the packets have no bar.
_LEAST = 0.005

Histograms = dict[str, Histogram]


@dataclass(frozen=True, slots=True)
class Compared:
    """A percentile of all packets and of the sampled ones, in nanoseconds."""

    stage: str
    percent: int
    of_all_ns: int
    sampled_ns: int

    @property
    def buckets(self) -> int:
        """The distance of the two, in buckets of the histogram."""
        return abs(position_of(self.of_all_ns) - position_of(self.sampled_ns))


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all packets and one in 16, in turns."""
    foreign = foreign_programs()
    bar = progress.add_task("sampled", total=2 * rounds)
    found: Mapping[Effort, list[Histograms]] = {ALL: [], SAMPLED: []}
    with (
        node() as pods,
        compiled_traffic() as compiled,
        tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects,
        traffic(compiled, pods.client, pods.server, SERVER_ADDRESS) as source,
    ):
        async with engine_with_cache(pods.host.inode, Path(objects)) as engine:
            engine.assign(slots_of_namespaces(pods.busy))
            await engine.use(MODULES)
            for _ in range(rounds):
                for effort, slices in found.items():
                    slices.append(await _measure(engine, source, effort))
                    progress.advance(bar)
    return _outcome(found[ALL], found[SAMPLED], foreign)


async def _measure(engine: KernelEngine, source: Traffic, effort: Effort) -> Histograms:
    """Return the histograms of a slice of time with this effort."""
    engine.sample(effort.packets, effort.slices)
    wanted = 2.0**-effort.shift
    await _exchange(source, _SETTLE_S, until=lambda: wanted in _ratios(engine))
    await _exchange(source, _SLICE_S)
    histograms: Histograms = {}
    for measurement in engine.read().values():
        for stage in STAGES:
            measured = measurement.stage(stage)
            if measured.sampling_ratio == wanted:
                histograms[stage] = histograms.get(stage, EMPTY) + measured.histogram
    return histograms


def _ratios(engine: KernelEngine) -> set[float]:
    """Read, and return the sampling ratios of the measured packets."""
    measured = (each.stage(PLOTTED) for each in engine.read().values())
    return {each.sampling_ratio for each in measured if each.histogram.count}


async def _exchange(
    source: Traffic, seconds: float, until: Callable[[], bool] | None = None
) -> None:
    """Exchange for so long, or until the condition holds, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await asyncio.to_thread(source.exchange, 0.5)
        if until is not None and until():
            return
    if until is not None:
        raise CannotMeasureError("no packet was measured with the wanted sampling ratio")


def _outcome(of_all: Sequence[Histograms], sampled: Sequence[Histograms], foreign: int) -> Outcome:
    table = Table(title="Percentiles of 1 packet in 16, beside those of all")
    for heading in ("stage", "percentile", "all", "1 in 16", "buckets apart", "target", ""):
        table.add_column(heading)
    figures = []
    for each in _compared(of_all, sampled):
        is_met = each.buckets <= MOST_BUCKETS
        table.add_row(
            each.stage,
            f"p{each.percent}",
            format_ns(each.of_all_ns),
            format_ns(each.sampled_ns),
            str(each.buckets),
            f"<= {MOST_BUCKETS}",
            verdict(met=is_met),
        )
        figures.append(
            {
                "stage": each.stage,
                "percentile": each.percent,
                "all_ns": each.of_all_ns,
                "sampled_ns": each.sampled_ns,
                "buckets": each.buckets,
                "met": is_met,
            }
        )
    remarks = (
        [f"[yellow]{foreign} tracing programs of others are loaded as well.[/]"] if foreign else []
    )
    plot = _plot(_sum(of_all), _sum(sampled))
    return Outcome((table, plot, *remarks), {"foreign_programs": foreign, "percentiles": figures})


def _compared(of_all: Sequence[Histograms], sampled: Sequence[Histograms]) -> list[Compared]:
    return [
        Compared(stage, percent, _median(of_all, stage, percent), _median(sampled, stage, percent))
        for stage in STAGES
        for percent in PERCENTS
    ]


def _median(slices: Sequence[Histograms], stage: str, percent: int) -> int:
    found = (each.get(stage, EMPTY).percentile(percent) for each in slices)
    return round(statistics.median(found))


def _sum(slices: Sequence[Histograms]) -> Histogram:
    return sum((each.get(PLOTTED, EMPTY) for each in slices), start=EMPTY)


def _plot(of_all: Histogram, sampled: Histogram) -> str:
    """Return both histograms as bars: the part of the packets in each bucket."""
    parts = {"all": _parts(of_all), "1 in 16": _parts(sampled)}
    shares = [share for part in parts.values() for share in part.values()]
    plotted = {at for part in parts.values() for at, share in part.items() if share >= _LEAST}
    lines = [f"{PLOTTED}: {of_all.count:,} packets of all, {sampled.count:,} of 1 in 16"]
    for position in sorted(plotted):
        for name, part in parts.items():
            share = part.get(position, 0.0)
            bar = "#" * round(_BAR * share / max(shares))
            lines.append(f"{_upper(position):>10}  {name:<8}{100 * share:5.1f} %  {bar}".rstrip())
    return "\n".join(lines)


def _parts(histogram: Histogram) -> dict[int, float]:
    """Return the part of the samples in each bucket, by its position."""
    return {at: count / histogram.count for at, count in histogram.buckets.items()}


def _upper(position: int) -> str:
    """Return the longest duration of a bucket."""
    return f"<= {format_ns(round(min(bounds_of(position)[1], HIGHEST_NS)))}"
