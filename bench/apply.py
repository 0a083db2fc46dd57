"""The time from Apply to attached, of a real agent with one target.

Cold: a new agent with an empty cache compiles. Warm: a new agent finds the objects in the cache,
and gets its state at once. Loaded: it gets it when it has loaded the programs, as agents do at
their start. Again: an agent whose last target left, and whose probe waits for the next one, has its
programs loaded already. Each with the CPUs as they are, and with a busy loop for each of them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.agent_process import agent, sleepers
from bench.outcome import CannotMeasureError, Outcome
from bench.programs import links, programs
from bench.ratio import MEDIAN, Spread, verdict

DEFAULT_ROUNDS = 5
COLD, WARM = "cold: compiled", "warm: from the cache, at once"
LOADED, AGAIN = "loaded: soon after the agent's start", "again: after the last target"
IDLE, BUSY = "as they are", "all busy"
# The others have no target.
MOST_MS: Mapping[tuple[str, str], float] = {
    (WARM, IDLE): 100,
    (LOADED, IDLE): 100,
    (AGAIN, IDLE): 100,
    (COLD, IDLE): 3000,
    (COLD, BUSY): 3000,
}
_LOADED_S = 120.0
_STANDS_STILL_S = 1.0
Samples = Mapping[tuple[str, str], Sequence[float]]


async def run(rounds: int, progress: Progress) -> Outcome:
    """Apply to new agents in turns."""
    bar = progress.add_task("apply", total=rounds * 2)
    found: dict[tuple[str, str], list[float]] = {}
    with sleepers(1) as pids:
        for _ in range(rounds):
            for cpus in (IDLE, BUSY):
                with busy_loops() if cpus == BUSY else nullcontext():
                    for start, seconds in (await _starts(pids)).items():
                        found.setdefault((start, cpus), []).append(1000 * seconds)
                progress.advance(bar)
    return _outcome(found)


async def _starts(pids: Sequence[int]) -> Mapping[str, float]:
    """Return the seconds that each start takes."""
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        objects = Path(folder) / "objects"
        async with agent(objects) as running:
            seconds[COLD] = await running.apply(pids)
        async with agent(objects) as running:
            seconds[WARM] = await running.apply(pids)
        async with agent(objects) as running:
            await _until_loaded(running.pid)
            seconds[LOADED] = await running.apply(pids)
            if not links(running.pid):
                raise CannotMeasureError("the agent says attached, and nothing is attached")
            await running.wait_for_a_pod()
            await _until_loaded(running.pid)
            seconds[AGAIN] = await running.apply(pids)
    return seconds


async def _until_loaded(pid: int) -> None:
    """Wait until an agent without a target has loaded its programs for the next one.

    Alternatives of refused programs come only when they are attached, so their number is not known
    before.
    """
    deadline = time.monotonic() + _LOADED_S
    loaded, since = 0, time.monotonic()
    while not loaded or links(pid) or time.monotonic() - since < _STANDS_STILL_S:
        if time.monotonic() > deadline:
            raise CannotMeasureError(f"no programs are loaded after {_LOADED_S:.0f} s")
        await asyncio.sleep(0.05)
        if (now_loaded := programs(pid)) != loaded:
            loaded, since = now_loaded, time.monotonic()


@contextmanager
def busy_loops() -> Iterator[None]:
    """Run a busy loop for each CPU, for the time of the `with` block."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def _outcome(found: Samples) -> Outcome:
    (count,) = {len(values) for values in found.values()}
    table = Table(title=f"Apply to attached, one target, {count} times each")
    for heading in ("start", "CPUs", f"ms: {MEDIAN}", "target", ""):
        table.add_column(heading, justify="right" if heading.startswith("ms") else "left")
    rows = []
    for (start, cpus), values in found.items():
        spread, most = Spread.of(values), MOST_MS.get((start, cpus))
        is_met = None if most is None else spread.median <= most
        table.add_row(
            start,
            cpus,
            spread.text(0),
            "" if most is None else f"<= {most:g}",
            "" if is_met is None else verdict(met=is_met),
        )
        rows.append(
            {
                "start": start,
                "cpus": cpus,
                "ms": spread.document(),
                "target": most,
                "met": is_met,
            }
        )
    return Outcome((table,), {"times": count, "applies": rows})
