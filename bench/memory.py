"""Memory and idle CPU of the agent on a node, of its compiler process and of its maps.

The agent is the real one, on a Unix socket. Its probe has 110 processes, the usual maximum of pods
on a node. Each is a target of its own in a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.agent_process import INTERVAL_S, agent, sleepers
from bench.outcome import CannotMeasureError, Outcome
from bench.programs import kernel_memory
from bench.ratio import MEDIAN, Spread, verdict

DEFAULT_ROUNDS = 3
PODS = 110
WATCHED_S = 20.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of figure, its unit and its target; None without a target."""

    name: str
    unit: str
    most: float | None = None


FIGURES = (
    Figure("agent, no probe: resident", "MiB"),
    Figure("agent, no probe: CPU", "% of a core", 0.2),
    Figure(f"agent, {PODS} targets: resident", "MiB", 64),
    Figure(f"agent, {PODS} targets, no traffic: CPU", "% of a core"),
    Figure("agent, after the probe: resident", "MiB"),
    Figure(f"maps for {PODS} targets", "MiB", 16),
    Figure("programs", "MiB"),
    Figure("state of a target's socket", "KiB"),
    Figure("apply to attached, compiled", "s", 3),
    Figure("apply to attached, cached", "s", 0.1),
    Figure("compiler process: peak", "MiB", 200),
    Figure("compiler process: time to attached", "s", 2),
    Figure("cached object: time to attached", "s"),
    Figure("first target after none: time to attached", "s", 0.1),
)


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure agent and compiler `rounds` times, with new ones in each."""
    bar = progress.add_task("memory", total=rounds)
    samples: list[dict[str, float]] = []
    for _ in range(rounds):
        samples.append({**await _agent_figures(), **_compiler_figures()})
        progress.advance(bar)
    return _outcome({name: Spread.of(each[name] for each in samples) for name in samples[0]})


def _compiler_figures() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiler_cost"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotMeasureError(f"the compiler process failed: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    return {
        "compiler process: peak": found["peak_mib"],
        "compiler process: time to attached": found["seconds"],
        "cached object: time to attached": found["cached_s"],
        "first target after none: time to attached": found["again_s"],
    }


async def _agent_figures() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        return await _figures_of_an_agent(Path(folder) / "objects")


async def _figures_of_an_agent(objects: Path) -> dict[str, float]:
    async with agent(objects) as running, running.reports():
        pid = running.pid
        idle_cpu = await _cpu_percent(pid)
        idle_mib = _resident_mib(pid)
        with sleepers(PODS) as pids:
            cold_s = await running.apply(pids)
            await asyncio.sleep(INTERVAL_S + 1)  # at least one report has been made
            steady_cpu = await _cpu_percent(pid)
            steady_mib = _resident_mib(pid)
            kernel = kernel_memory(pid)
            await running.apply([])
            warm_s = await running.apply(pids)
            await running.apply([])
        return {
            "agent, no probe: resident": idle_mib,
            "agent, no probe: CPU": idle_cpu,
            f"agent, {PODS} targets: resident": steady_mib,
            f"agent, {PODS} targets, no traffic: CPU": steady_cpu,
            "agent, after the probe: resident": _resident_mib(pid),
            f"maps for {PODS} targets": kernel.maps_bytes / _MIB,
            "programs": kernel.programs_bytes / _MIB,
            "state of a target's socket": kernel.socket_bytes / 1024,
            "apply to attached, compiled": cold_s,
            "apply to attached, cached": warm_s,
        }


async def _cpu_percent(pid: int) -> float:
    before, began = _cpu_ns(pid), time.monotonic()
    await asyncio.sleep(WATCHED_S)
    return 100 * (_cpu_ns(pid) - before) / 1e9 / (time.monotonic() - began)


def _cpu_ns(pid: int) -> int:
    """Return the run time of all threads; /proc/PID/stat counts in hundredths of a second."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # ended since the listing
            spent += int((task / "schedstat").read_text().split()[0])
    return spent


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise CannotMeasureError(f"/proc/{pid}/status shows no VmRSS")


def _outcome(spreads: dict[str, Spread]) -> Outcome:
    table = Table(title=f"Memory and idle CPU: {MEDIAN} of the rounds")
    for heading in ("what", "figure", "unit", "target", ""):
        table.add_column(heading, justify="right" if heading == "figure" else "left")
    for figure in FIGURES:
        spread = spreads[figure.name]
        table.add_row(
            figure.name,
            str(spread),
            figure.unit,
            "" if figure.most is None else f"<= {figure.most:g}",
            "" if figure.most is None else verdict(met=spread.median <= figure.most),
        )
    return Outcome(
        (table,),
        {
            figure.name: {
                **spreads[figure.name].document(),
                **{key: value for key, value in asdict(figure).items() if key != "name"},
            }
            for figure in FIGURES
        },
    )
