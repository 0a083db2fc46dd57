"""The cost of each program per packet, in units of one empty program of the same run.

The kernel's statistics time a program by reading the clock before and after it. So an empty one
costs about those two readings. "Hooks" counts in that unit. "Beyond empty" subtracts one unit for
each run: the rest is the cost of the code itself, which an optimisation can reduce.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import Progress
from rich.table import Table

from bench.network import (
    CLIENT_ADDRESS,
    SERVER_ADDRESS,
    Network,
    Traffic,
    compiled_traffic,
    network,
    own_netns,
    traffic,
)
from bench.outcome import Outcome
from bench.programs import (
    RunTime,
    UnitProgram,
    foreign_programs,
    run_times,
    unit_program,
)
from bench.ratio import MEDIAN, Spread, verdict
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.hooks import EVENTS
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 7
SECONDS = 0.7
MODULES = frozenset(DEFAULT_MODULES)
MOST_HOOKS_TARGET = 16
MOST_HOOKS_OTHERS = 3
_EMPTY_ON = "netif_receive_skb"
_NO_CGROUP = 1 << 40  # a cgroup id that no cgroup has


@dataclass(frozen=True, slots=True)
class HookScenario:
    """A selection of packets: `spec` is the target, the traffic stays the same."""

    name: str
    is_target: bool
    spec: SlotSpec
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """One program in one slice of one scenario."""

    runs_per_packet: float
    hooks_per_run: float

    @property
    def hooks(self) -> float:
        """Cost per packet."""
        return self.runs_per_packet * self.hooks_per_run

    @property
    def beyond_empty(self) -> float:
        """Cost per packet beyond that of as many empty programs."""
        return self.runs_per_packet * (self.hooks_per_run - 1)


Costs = Mapping[str, ProgramCost]


@dataclass(frozen=True, slots=True)
class Units:
    """The cost in nanoseconds of an empty program, and of one that reads the clock once."""

    empty_ns: float
    clock_ns: float

    @property
    def clock_hooks(self) -> float:
        """One reading of the clock, beyond the empty program."""
        return self.clock_ns / self.empty_ns - 1


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all scenarios in turns."""
    foreign = foreign_programs()
    with compiled_traffic() as program, network() as net, _stranger() as stranger:
        scenarios = _scenarios(net, stranger)
        bar = progress.add_task("hooks", total=rounds * len(scenarios))
        own = own_netns()
        engines = {
            False: KernelEngine(host_netns=own),
            True: KernelEngine(host_netns=net.client.inode),
        }
        found: dict[str, list[Costs]] = {scenario.name: [] for scenario in scenarios}
        with (
            unit_program(_EMPTY_ON) as empty,
            unit_program(_EMPTY_ON, reads_clock=True) as clock,
            traffic(program, net.client, net.server, SERVER_ADDRESS) as over_veth,
            traffic(program, net.client, net.client, CLIENT_ADDRESS) as on_host,
        ):
            try:
                for _ in range(rounds):
                    for scenario in scenarios:
                        await engines[not scenario.on_host].use(frozenset())
                        engine = engines[scenario.on_host]
                        engine.assign({0: scenario.spec})
                        await engine.use(MODULES)
                        source = on_host if scenario.on_host else over_veth
                        found[scenario.name].append(_slice(source, empty, clock))
                        progress.advance(bar)
                units = Units(empty.run_time().per_run, clock.run_time().per_run)
            finally:
                for engine in engines.values():
                    await engine.close()
    return _outcome(scenarios, found, units, foreign)


@contextmanager
def _stranger() -> Iterator[int]:
    """Run a process that does nothing; yield its process id."""
    process = subprocess.Popen(["sleep", "infinity"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _scenarios(net: Network, stranger: int) -> tuple[HookScenario, ...]:
    apart = frozenset({net.apart.inode})
    elsewhere = SlotSpec(netns_wide=apart, netns=apart)
    return (
        HookScenario("target", True, SlotSpec(netns_wide=net.ends, netns=net.ends)),
        HookScenario("other pod", False, elsewhere),
        HookScenario("the node itself", False, elsewhere, on_host=True),
        HookScenario(
            "same pod, other container",
            False,
            SlotSpec(netns=net.ends, cgroup_ids=frozenset({_NO_CGROUP})),
        ),
        HookScenario(
            "same netns, other process",
            False,
            SlotSpec(netns=net.ends, tgids=frozenset({stranger})),
        ),
    )


def _slice(source: Traffic, empty: UnitProgram, clock: UnitProgram) -> Costs:
    time.sleep(0.02)  # let the effects of changed programs settle
    empty_before, before = empty.run_time(), run_times(without=(empty, clock))
    exchanged = source.exchange(SECONDS)
    after, empty_after = run_times(without=(empty, clock)), empty.run_time()
    unit = (empty_after - empty_before).per_run
    return {
        tracepoint: _cost(run_time - before[tracepoint], exchanged.packets, unit)
        for tracepoint, run_time in after.items()
    }


def _cost(ran: RunTime, packets: int, unit: float) -> ProgramCost:
    return ProgramCost(ran.runs / packets, ran.per_run / unit)


def _outcome(
    scenarios: Sequence[HookScenario],
    found: Mapping[str, Sequence[Costs]],
    units: Units,
    foreign: int,
) -> Outcome:
    unit = (
        f"One hook = one empty raw-tracepoint program on {_EMPTY_ON}, with the kernel's statistics "
        f"on: here {units.empty_ns:.0f} ns. Reading the clock costs {units.clock_hooks:.2f} more. "
        f"{os.cpu_count()} CPUs, kernel {os.uname().release}."
    )
    remarks = [unit]
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (
            _sums_table(scenarios, found),
            _programs_table("A target's packet, by program", found["target"]),
            _matrix_table(scenarios, found),
            *remarks,
        ),
        {
            "empty_program_ns": round(units.empty_ns, 1),
            "clock_hooks": round(units.clock_hooks, 3),
            "foreign_programs": foreign,
            "scenarios": {
                scenario.name: _scenario_document(scenario, found[scenario.name])
                for scenario in scenarios
            },
        },
    )


def _directions() -> Mapping[str, str]:
    """Return the direction of the packets that run each tracepoint."""
    directions = {}
    for event in EVENTS:
        for hook in event.hooks:
            if Module.RX in event.modules and event.modules != frozenset(Module):
                directions[hook.symbol] = "received"
            elif event.modules == {Module.TX}:
                directions[hook.symbol] = "sent"
    return directions


def _sum(costs: Costs, direction: str | None = None, *, beyond_empty: bool = False) -> float:
    directions = _directions()
    return sum(
        cost.beyond_empty if beyond_empty else cost.hooks
        for tracepoint, cost in costs.items()
        if direction is None or directions.get(tracepoint) == direction
    )


def _limit(scenario: HookScenario) -> int:
    return MOST_HOOKS_TARGET if scenario.is_target else MOST_HOOKS_OTHERS


def _sums_table(scenarios: Sequence[HookScenario], found: Mapping[str, Sequence[Costs]]) -> Table:
    table = Table(title=f"Hooks a packet, all programs of rx+tx+tcp: {MEDIAN} of the rounds")
    for heading in ("packet of", "received", "sent", "both", "beyond empty", "target", ""):
        table.add_column(heading, justify="left" if heading in {"packet of", ""} else "right")
    for scenario in scenarios:
        slices = found[scenario.name]
        both = Spread.of(_sum(costs) for costs in slices)
        table.add_row(
            scenario.name,
            f"{Spread.of(_sum(costs, 'received') for costs in slices).median:.2f}",
            f"{Spread.of(_sum(costs, 'sent') for costs in slices).median:.2f}",
            str(both),
            str(Spread.of(_sum(costs, beyond_empty=True) for costs in slices)),
            f"<= {_limit(scenario)}",
            verdict(met=both.median <= _limit(scenario)),
        )
    return table


def _programs_table(title: str, slices: Sequence[Costs]) -> Table:
    table = Table(title=title)
    for heading in ("program on", "packet", "runs a packet", "hooks a run", "hooks a packet"):
        table.add_column(
            heading, justify="left" if heading in {"program on", "packet"} else "right"
        )
    for tracepoint in _that_ran(slices):
        costs = [costs[tracepoint] for costs in slices]
        table.add_row(
            tracepoint,
            _directions().get(tracepoint, "-"),
            f"{Spread.of(cost.runs_per_packet for cost in costs).median:.2f}",
            str(Spread.of(cost.hooks_per_run for cost in costs)),
            f"{Spread.of(cost.hooks for cost in costs).median:.2f}",
        )
    return table


def _matrix_table(scenarios: Sequence[HookScenario], found: Mapping[str, Sequence[Costs]]) -> Table:
    table = Table(title="Hooks a run, by program and whose packet")
    table.add_column("program on")
    for scenario in scenarios:
        table.add_column(scenario.name, justify="right")
    for tracepoint in _that_ran(found["target"]):
        table.add_row(
            tracepoint,
            *(
                f"{Spread.of(c[tracepoint].hooks_per_run for c in found[scenario.name]).median:.2f}"
                for scenario in scenarios
            ),
        )
    return table


def _that_ran(slices: Sequence[Costs]) -> list[str]:
    """Return the tracepoints that packets ran, without connects and ends of processes."""
    return [
        tracepoint
        for tracepoint in slices[0]
        if Spread.of(costs[tracepoint].runs_per_packet for costs in slices).median > 0.01
    ]


def _scenario_document(scenario: HookScenario, slices: Sequence[Costs]) -> dict[str, object]:
    both = Spread.of(_sum(costs) for costs in slices)
    return {
        "hooks_received": Spread.of(_sum(costs, "received") for costs in slices).document(),
        "hooks_sent": Spread.of(_sum(costs, "sent") for costs in slices).document(),
        "hooks": both.document(),
        "hooks_beyond_empty": Spread.of(_sum(c, beyond_empty=True) for c in slices).document(),
        "target": _limit(scenario),
        "met": both.median <= _limit(scenario),
        "programs": {
            tracepoint: _program_document([costs[tracepoint] for costs in slices])
            for tracepoint in slices[0]
        },
    }


def _program_document(costs: Sequence[ProgramCost]) -> dict[str, object]:
    return {
        "runs_per_packet": Spread.of(cost.runs_per_packet for cost in costs).document(),
        "hooks_per_run": Spread.of(cost.hooks_per_run for cost in costs).document(),
    }
