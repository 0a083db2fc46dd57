"""The rate that targets keep with the default budget, and a storm that the budget absorbs.

Server and client are pods behind a bridge, and both are targets. The kernel's statistics are on as
the agent has them. Each slice of time is longer than a period of the agent's time slices.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import compiled_traffic, traffic
from bench.outcome import CannotMeasureError, Outcome
from bench.pods import SERVER_ADDRESS, Node, cgroup, node
from bench.probing import MODULES, engine_with_cache, slots_of_namespaces
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, verdict
from bench.real_programs import PROGRAMS, Inside, Load, Program, serving
from latencyprobe_agent.budget import Budget
from latencyprobe_agent.control import Effort
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.sampling import Governor

DEFAULT_ROUNDS = 9
BUDGET_PERCENT = 1.0
LEAST, LEAST_OF_REQUESTS = 0.97, 0.95
REQUESTS = "request-response"
_RATE_S = 6.0
_SETTLE_S = 60.0
_JUDGE_S = 0.5
_BAR = 40
# A program that no packet of a pod's device carries has no cost to keep down.
_LOCAL = "redis by a UNIX socket"


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure of the cost, and the effort that it was paid with."""

    seconds: float
    cpu_percent: float
    effort: Effort


@dataclass(slots=True)
class Keeper:
    """Keeps an engine within the budget, as the agent does."""

    engine: KernelEngine
    governor: Governor = field(default_factory=Governor)
    judged: list[Judged] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    async def keep(self) -> None:
        """Judge each new figure, until cancelled."""
        self.governor.keep_to(Budget(BUDGET_PERCENT), MODULES)
        known = 0
        while True:
            overhead, effort = self.engine.overhead(), self.governor.effort
            if overhead.cpu_percent is not None and overhead.figure != known:
                known = overhead.figure
                seconds = time.monotonic() - self.began
                self.judged.append(Judged(seconds, overhead.cpu_percent, effort))
            if self.governor.judge(overhead):
                effort = self.governor.effort
                self.engine.sample(effort.packets, effort.slices)
                self.engine.stop(self.governor.stopped)
            await asyncio.sleep(_JUDGE_S)

    @property
    def is_settled(self) -> bool:
        """True if the last two figures were within the budget, with one effort."""
        last = self.judged[-2:]
        return len({each.effort for each in last}) == 1 and all(
            each.cpu_percent <= BUDGET_PERCENT for each in last
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """The outcome of one program."""

    ratios: Sequence[float]
    judged: Sequence[Judged]


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure requests and responses first, then all programs."""
    foreign = foreign_programs()
    programs = [program for program in PROGRAMS if program.name != _LOCAL]
    for program in programs:
        program.require()
    bar = progress.add_task("budget", total=rounds * (1 + len(programs)))
    found: dict[str, Kept] = {}

    def advance() -> None:
        progress.advance(bar)

    with (
        node() as pods,
        compiled_traffic() as compiled,
        tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects,
    ):
        async with engine_with_cache(pods.host.inode, Path(objects)) as engine:
            await engine.use(MODULES)
            with traffic(compiled, pods.client, pods.server, SERVER_ADDRESS) as source:
                found[REQUESTS] = await _kept(
                    engine, pods, lambda: source.exchange(1).rate, rounds, advance
                )
            for program in programs:
                with cgroup("busy") as busy, _serving_in(pods, busy, program) as load:
                    found[program.name] = await _kept(engine, pods, load.measured, rounds, advance)
    return _outcome(found, foreign)


def _serving_in(pods: Node, busy: Path, program: Program) -> AbstractContextManager[Load]:
    return serving(program, Inside(pods.server, busy), Inside(pods.client, busy))


async def _kept(
    engine: KernelEngine,
    pods: Node,
    rate: Callable[[], float],
    rounds: int,
    advance: Callable[[], None],
) -> Kept:
    """Compare the rate with programs and without, in turns."""
    slots = slots_of_namespaces(pods.busy)
    ratios: list[float] = []
    engine.sample(0, 0)
    engine.assign({})
    unprobed = [await _mean(rate)]
    async with _keeping(engine) as keeper:
        for _ in range(rounds):
            engine.assign(slots)
            deadline = time.monotonic() + _SETTLE_S
            while not keeper.is_settled and time.monotonic() < deadline:
                await asyncio.to_thread(rate)
            probed = await _mean(rate)
            engine.assign({})
            unprobed.append(await _mean(rate))
            ratios.append(2 * probed / (unprobed[-2] + unprobed[-1]))
            advance()
    if not keeper.judged:
        raise CannotMeasureError("the kernel has no statistics of programs")
    return Kept(ratios, keeper.judged)


@contextlib.asynccontextmanager
async def _keeping(engine: KernelEngine) -> AsyncIterator[Keeper]:
    keeper = Keeper(engine)
    keeping = asyncio.create_task(keeper.keep())
    try:
        yield keeper
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def _mean(rate: Callable[[], float]) -> float:
    """Return the mean rate of some seconds, while the event loop goes on."""
    began, rates = time.monotonic(), []
    while time.monotonic() - began < _RATE_S:
        rates.append(await asyncio.to_thread(rate))
    return sum(rates) / len(rates)


def _outcome(found: Mapping[str, Kept], foreign: int) -> Outcome:
    table = Table(title=f"The rate that targets keep with a budget of {BUDGET_PERCENT:g} %")
    for heading in ("program", f"ratio: {MEDIAN}", "target", "", "cost", "measured"):
        table.add_column(heading, justify="right" if heading == "cost" else "left")
    figures = []
    for name, kept in found.items():
        spread, last = Spread.of(kept.ratios), kept.judged[-1]
        least = LEAST_OF_REQUESTS if name == REQUESTS else LEAST
        is_met = spread.median >= least
        table.add_row(
            name,
            str(spread),
            f">= {least}",
            verdict(met=is_met),
            f"{last.cpu_percent:.2f} %",
            f"1 in {1 << last.effort.shift}",
        )
        figures.append(
            {
                "program": name,
                **spread.document(),
                "target": least,
                "met": is_met,
                "cpu_percent": round(last.cpu_percent, 3),
                "sampling_ratio": 2.0**-last.effort.shift,
            }
        )
    plots = [_plot(found[REQUESTS].judged[:12])]
    remarks = []
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome((table, *plots, *remarks), {"foreign_programs": foreign, "kept": figures})


def _plot(judged: Sequence[Judged]) -> str:
    """Return the first figures as bars: the storm begins with the first one."""
    most = max(each.cpu_percent for each in judged)
    lines = [f"{REQUESTS}: the cost at each figure, in percent of one core"]
    for each in judged:
        bar = "#" * max(round(_BAR * each.cpu_percent / most), 1)
        lines.append(
            f"{each.seconds:5.1f} s  {each.cpu_percent:6.2f} % {bar:<{_BAR}}  "
            f"1 packet in {1 << each.effort.packets}, 1 part of the time in "
            f"{1 << each.effort.slices}"
        )
    return "\n".join(lines)
