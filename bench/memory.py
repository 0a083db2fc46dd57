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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from rich.progress import Progress
from rich.table import Table

from bench.outcome import CannotMeasureError, Outcome
from bench.programs import kernel_memory
from bench.ratio import MEDIAN, Spread, verdict
from latencyprobe.domain.stages import DEFAULT_MODULES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub

if TYPE_CHECKING:
    from latencyprobe.protocol.v1.node_agent_pb2_grpc import (
        NodeAgentAsyncStub,  # in the stubs alone
    )

DEFAULT_ROUNDS = 3
PODS = 110
INTERVAL_S = 10
WINDOW_S = 60
MAX_PODS = 20
WATCHED_S = 20.0
READY_S = 30.0
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
    async with _agent() as (pid, stub), _reports(stub):
        idle_cpu = await _cpu_percent(pid)
        idle_mib = _resident_mib(pid)
        with _sleepers() as pids:
            cold_s = await _apply(stub, 1, pids)
            await asyncio.sleep(INTERVAL_S + 1)  # at least one report has been made
            steady_cpu = await _cpu_percent(pid)
            steady_mib = _resident_mib(pid)
            kernel = kernel_memory(pid)
            await _apply(stub, 2, [])
            warm_s = await _apply(stub, 3, pids)
            await _apply(stub, 4, [])
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


@asynccontextmanager
async def _agent() -> AsyncIterator[tuple[int, NodeAgentAsyncStub]]:
    """Run an agent; yield its process id, and a stub of it."""
    with tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as folder:
        address = Path(folder) / "agent.sock"
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
                [
                    *(sys.executable, "-P", "-m", "latencyprobe.commands.cli", "agent"),
                    *("--socket", address, "--exit-with-parent"),
                    *("--object-cache", str(Path(folder) / "objects")),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
                    stub: NodeAgentAsyncStub = NodeAgentStub(channel)
                    await _wait_until_served(stub)
                    yield process.pid, stub
            except grpc.aio.AioRpcError as error:
                log.seek(0)
                raise CannotMeasureError(f"{error.details()}\n{log.read()[-2000:]}") from None
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait()


async def _wait_until_served(stub: NodeAgentAsyncStub) -> None:
    await stub.GetNodeInfo(pb.GetNodeInfoRequest(), wait_for_ready=True, timeout=READY_S)


@asynccontextmanager
async def _reports(stub: NodeAgentAsyncStub) -> AsyncIterator[None]:
    """Read a stream of reports like an operator, and drop them."""
    stream = stub.WatchReports(iter([pb.WatchReportsRequest()]))

    async def forget() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(forget())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _apply(stub: NodeAgentAsyncStub, generation: int, pids: list[int]) -> float:
    """Apply a state with these targets; return the seconds that the agent took."""
    probe = pb.Probe(
        id="bench",
        name="bench",
        modules=[str(module) for module in DEFAULT_MODULES],
        interval=Duration(seconds=INTERVAL_S),
        window=Duration(seconds=WINDOW_S),
        max_pods=MAX_PODS,
        pods_in_full=pb.PodChoice(most=MAX_PODS),
        targets=[pb.Target(id=str(pid), pid=pid) for pid in pids],
        node_figures=True,
    )
    state = pb.DesiredState(generation=generation, probes=[probe] if pids else [])
    began = time.monotonic()
    result = await stub.Apply(state)
    seconds = time.monotonic() - began
    states = {target.state for status in result.probes for target in status.targets}
    if states - {pb.TargetStatus.ATTACHED}:
        raise CannotMeasureError(f"not every target was attached: {result.probes}")
    return seconds


@contextmanager
def _sleepers() -> Iterator[list[int]]:
    """Run processes that do nothing, each in its own network namespace; yield their ids."""
    command = ["unshare", "--net", "sleep", "infinity"]
    processes = [subprocess.Popen(command) for _ in range(PODS)]
    try:
        deadline = time.monotonic() + READY_S
        while any(_netns(process.pid) == _netns("self") for process in processes):
            if time.monotonic() > deadline:
                raise CannotMeasureError("unshare made no network namespaces")
            time.sleep(0.05)
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _netns(process: int | str) -> int:
    return Path(f"/proc/{process}/ns/net").stat().st_ino


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
