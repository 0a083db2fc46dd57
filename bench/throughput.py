"""TCP requests and responses on a veth pair: the rate with our programs and without.

Each arm is measured between two unprobed slices. Client and server share one CPU
(request_response.c), which shows the whole cost: on a real network, the latency of the wire hides
most of it.

The agent enables the kernel's run-time statistics only for a small part of the time. So they are
off here, except in the arms that name them.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from rich.progress import Progress
from rich.table import Table

from bench.bpftrace import bpftrace, is_installed
from bench.network import Network, Traffic, compiled_traffic, network, own_netns, traffic
from bench.outcome import Outcome
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, paired, verdict
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.contract import SlotSpec, TraceSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 9
SECONDS = 0.6
LEAST_UNSAMPLED = 0.85
LEAST_SAMPLED = 0.95
SAMPLING_SHIFT = 6
TRACED_PER_SECOND = 1000  # as latencyprobe trace does
_ALL = frozenset(DEFAULT_MODULES)
_NO_TARGET = SlotSpec()
_NO_CGROUP = 1 << 40  # a cgroup id that no cgroup has


@dataclass(frozen=True, slots=True)
class Arm:
    """A configuration of the probe. `least` is the target ratio; None without a target.

    `traced_from_ns`: packets of at least this duration are traced, TRACED_PER_SECOND at most.
    """

    name: str
    modules: frozenset[Module] = _ALL
    spec: SlotSpec = _NO_TARGET
    least: float | None = None
    statistics: bool = False
    sampling_shift: int = 0
    traced_from_ns: int | None = None
    by_bpftrace: bool = False


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all arms in turns with the unprobed rate."""
    foreign = foreign_programs()
    with (
        compiled_traffic() as program,
        network() as net,
        traffic(program, net.client, net.server) as source,
    ):
        arms = _arms(net)
        bar = progress.add_task("throughput", total=rounds * len(arms))
        engine = KernelEngine(host_netns=own_netns())
        try:
            found = await paired(
                {arm.name: partial(_probed, arm, engine) for arm in arms},
                partial(_rate, source),
                rounds,
                partial(progress.advance, bar),
            )
        finally:
            await engine.close()
    return _outcome(arms, found.ratios, Spread.of(found.unprobed), foreign)


def _arms(net: Network) -> tuple[Arm, ...]:
    ends = SlotSpec(netns_wide=net.ends, netns=net.ends)
    apart = frozenset({net.apart.inode})
    neighbour = SlotSpec(netns=net.ends, cgroup_ids=frozenset({_NO_CGROUP}))
    arms = [
        Arm("target: rx+tx+tcp", spec=ends, least=LEAST_UNSAMPLED),
        Arm("target: rx+tx+tcp, statistics on", spec=ends, statistics=True),
        Arm(
            f"target: rx+tx+tcp, 1 packet in {1 << SAMPLING_SHIFT}",
            spec=ends,
            least=LEAST_SAMPLED,
            sampling_shift=SAMPLING_SHIFT,
        ),
        Arm("target: rx+tx+tcp, traced, none slow", spec=ends, traced_from_ns=10**10),
        Arm("target: rx+tx+tcp, traced, all slow", spec=ends, traced_from_ns=0),
        *(Arm(f"target: {module} alone", frozenset({module}), ends) for module in DEFAULT_MODULES),
        Arm("other pod", spec=SlotSpec(netns_wide=apart, netns=apart)),
        Arm(
            "other pod, statistics on",
            spec=SlotSpec(netns_wide=apart, netns=apart),
            statistics=True,
        ),
        Arm("same pod, other container", spec=neighbour),
    ]
    if is_installed():
        arms.append(Arm("bpftrace, the same stages", by_bpftrace=True))
    return tuple(arms)


def _rate(source: Traffic) -> float:
    time.sleep(0.02)  # let the effects of changed programs settle
    return source.exchange(SECONDS).rate


@asynccontextmanager
async def _probed(arm: Arm, engine: KernelEngine) -> AsyncIterator[None]:
    if arm.by_bpftrace:
        with bpftrace():
            yield
        return
    engine.assign({0: arm.spec})
    engine.sample(arm.sampling_shift)
    await engine.use(arm.modules, tracing=arm.traced_from_ns is not None)
    engine._clock.stop()
    if arm.traced_from_ns is not None:
        limits_ns = dict.fromkeys(("rx.total", "tx.total"), arm.traced_from_ns)
        engine.trace(TraceSpec(limits_ns, frozenset({0}), TRACED_PER_SECOND))
    statistics = libbpf.enable_run_time_statistics() if arm.statistics else None
    try:
        yield
    finally:
        if statistics is not None:
            os.close(statistics)
        engine.trace(None)
        await engine.use(frozenset())


def _outcome(
    arms: Sequence[Arm], ratios: Mapping[str, Sequence[float]], unprobed: Spread, foreign: int
) -> Outcome:
    table = Table(title="Rate of TCP requests and responses, probed : unprobed")
    for heading in ("probed", f"ratio: {MEDIAN}", "target", ""):
        table.add_column(heading, justify="right" if heading.startswith("ratio") else "left")
    spreads = {arm.name: Spread.of(ratios[arm.name]) for arm in arms}
    for arm in arms:
        spread = spreads[arm.name]
        table.add_row(
            arm.name,
            str(spread),
            "" if arm.least is None else f">= {arm.least}",
            "" if arm.least is None else verdict(met=spread.median >= arm.least),
        )
    rate = (
        f"Unprobed: {unprobed.median:,.0f} a second "
        f"({unprobed.lower:,.0f} to {unprobed.upper:,.0f}), client and server on one CPU."
    )
    remarks = [rate]
    if not is_installed():
        remarks.append("[yellow]bpftrace is not installed: no comparison with it.[/]")
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (table, *remarks),
        {
            "unprobed_per_second": unprobed.document(),
            "foreign_programs": foreign,
            "ratios": {
                arm.name: {
                    **spreads[arm.name].document(),
                    "target": arm.least,
                    "met": None if arm.least is None else spreads[arm.name].median >= arm.least,
                }
                for arm in arms
            },
        },
    )
