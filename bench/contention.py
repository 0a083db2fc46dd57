"""Two CPUs that count for one target, against two that count for a target each.

On either CPU, a client and a server of their own exchange requests and responses. Only the slots
differ: one for both, or one for each. So the ratio is the cost of counting in the same place.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from rich.progress import Progress
from rich.table import Table

from bench.network import Network, Traffic, compiled_traffic, network, own_netns, traffic
from bench.outcome import CannotMeasureError, Outcome
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, verdict
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 15
SECONDS = 0.6
MOST = 1.05
CPUS = 2


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure both in turns."""
    cpus = sorted(os.sched_getaffinity(0))[-CPUS:]
    if len(cpus) < CPUS:
        raise CannotMeasureError("two CPUs are needed, this process may use one")
    foreign = foreign_programs()
    bar = progress.add_task("contention", total=rounds)
    ratios: list[float] = []
    with ExitStack() as stack:
        program = stack.enter_context(compiled_traffic())
        nets = [stack.enter_context(network(str(cpu))) for cpu in cpus]
        sources = [
            stack.enter_context(traffic(program, net.client, net.server, cpu=cpu))
            for net, cpu in zip(nets, cpus, strict=True)
        ]
        pool = stack.enter_context(ThreadPoolExecutor())
        together = {0: _slot(*nets)}
        apart = {slot: _slot(net) for slot, net in enumerate(nets)}
        engine = KernelEngine(host_netns=own_netns())
        try:
            await engine.use(frozenset(DEFAULT_MODULES))
            engine._clock.stop()
            for _ in range(rounds):
                rates = []
                for slots in (apart, together, apart):
                    engine.assign(slots)
                    rates.append(_rate(pool, sources))
                ratios.append((rates[0] + rates[2]) / (2 * rates[1]))
                progress.advance(bar)
        finally:
            await engine.close()
    return _outcome(Spread.of(ratios), foreign)


def _slot(*nets: Network) -> SlotSpec:
    ends = frozenset(inode for net in nets for inode in net.ends)
    return SlotSpec(netns_wide=ends, netns=ends)


def _rate(pool: ThreadPoolExecutor, sources: list[Traffic]) -> float:
    exchanged = list(pool.map(lambda source: source.exchange(SECONDS), sources))
    return sum((each.rate for each in exchanged), start=0.0)


def _outcome(ratio: Spread, foreign: int) -> Outcome:
    table = Table(title="Time of a request and its response, one slot : a slot for each CPU")
    for heading in ("CPUs", f"ratio: {MEDIAN}", "target", ""):
        table.add_column(heading)
    table.add_row(str(CPUS), str(ratio), f"<= {MOST}", verdict(met=ratio.median <= MOST))
    remarks = (
        [f"[yellow]{foreign} tracing programs of others are loaded as well.[/]"] if foreign else []
    )
    return Outcome(
        (table, *remarks),
        {
            "foreign_programs": foreign,
            "ratio": {**ratio.document(), "target": MOST, "met": ratio.median <= MOST},
        },
    )
