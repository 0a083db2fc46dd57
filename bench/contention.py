"""Two CPUs that count for one target, against two that count for a target each.

On either CPU, a client and a server of their own exchange requests and responses. Only the slots
differ: one for both, or one for each. Their cost is the time of a request and its response beyond
that of a slice without our programs. The ratio of these costs is that of counting in the same
place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import Network, Traffic, compiled_traffic, network, own_netns, traffic
from bench.outcome import CannotMeasureError, Outcome
from bench.probing import engine_with_cache, measuring
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, verdict
from latencyprobe_agent.kernel.contract import SlotSpec

DEFAULT_ROUNDS = 15
SECONDS = 0.6
MOST = 1.05
CPUS = 2


TOGETHER, APART = "one slot", "a slot for each"


@dataclass(frozen=True, slots=True)
class Rates:
    """The requests a second on all CPUs together, in one round."""

    unprobed: float
    apart: float
    together: float

    @property
    def costs_ns(self) -> Mapping[str, float]:
        """The time of our programs for a request and its response, on the CPU that it keeps."""
        return {
            name: 1e9 * CPUS * (1 / rate - 1 / self.unprobed)
            for name, rate in ((TOGETHER, self.together), (APART, self.apart))
        }


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure both, and neither, in turns."""
    cpus = sorted(os.sched_getaffinity(0))[-CPUS:]
    if len(cpus) < CPUS:
        raise CannotMeasureError("two CPUs are needed, this process may use one")
    foreign = foreign_programs()
    bar = progress.add_task("contention", total=rounds)
    found: list[Rates] = []
    with ExitStack() as stack:
        program = stack.enter_context(compiled_traffic())
        objects = stack.enter_context(tempfile.TemporaryDirectory(prefix="latencyprobe-bench-"))
        nets = [stack.enter_context(network(str(cpu))) for cpu in cpus]
        sources = [
            stack.enter_context(traffic(program, net.client, net.server, cpu=cpu))
            for net, cpu in zip(nets, cpus, strict=True)
        ]
        rate = partial(_rate, stack.enter_context(ThreadPoolExecutor()), sources)
        together = {0: _slot(*nets)}
        apart = {slot: _slot(net) for slot, net in enumerate(nets)}
        async with engine_with_cache(own_netns(), Path(objects)) as engine:
            before = rate()
            for _ in range(rounds):
                async with measuring(engine, apart):
                    first = rate()
                    engine.assign(together)
                    shared = rate()
                    engine.assign(apart)
                    second = rate()
                after = rate()
                found.append(Rates((before + after) / 2, (first + second) / 2, shared))
                before = after
                progress.advance(bar)
    return _outcome(found, foreign)


def _slot(*nets: Network) -> SlotSpec:
    ends = frozenset(inode for net in nets for inode in net.ends)
    return SlotSpec(netns_wide=ends, netns=ends)


def _rate(pool: ThreadPoolExecutor, sources: Sequence[Traffic]) -> float:
    exchanged = list(pool.map(lambda source: source.exchange(SECONDS), sources))
    return sum((each.rate for each in exchanged), start=0.0)


def _outcome(found: Sequence[Rates], foreign: int) -> Outcome:
    costs = {name: Spread.of(each.costs_ns[name] for each in found) for name in (TOGETHER, APART)}
    # Of medians: in one round the difference of two rates may be next to nothing.
    ratio = costs[TOGETHER].median / costs[APART].median
    whole = Spread.of(each.apart / each.together for each in found)
    table = Table(title=f"Our programs for a request and its response, two CPUs: {MEDIAN}")
    for heading in ("slots", "ns", "target", ""):
        table.add_column(heading, justify="right" if heading == "ns" else "left")
    table.add_row(APART, costs[APART].text(0), "", "")
    table.add_row(TOGETHER, costs[TOGETHER].text(0), "", "", end_section=True)
    table.add_row("ratio of the medians", f"{ratio:.2f}", f"<= {MOST}", verdict(met=ratio <= MOST))
    table.add_row("ratio of the whole time", str(whole), "", "")
    remarks = (
        [f"[yellow]{foreign} tracing programs of others are loaded as well.[/]"] if foreign else []
    )
    return Outcome(
        (table, *remarks),
        {
            "foreign_programs": foreign,
            "cost_ns": {name: spread.document() for name, spread in costs.items()},
            "ratio": {"median": round(ratio, 4), "target": MOST, "met": ratio <= MOST},
            "ratio_of_the_whole_time": whole.document(),
        },
    )
