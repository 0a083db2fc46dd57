"""TCP requests and responses of pods, on one CPU: behind a bridge, and to beyond a NIC.

With an idle pod's cgroup as target, the traffic is a stranger's. Or the target is the cgroup of the
traffic itself. Or it is an idle process in the root cgroup, as with `--pid`, which shares the
node's network namespace with the traffic's other end. Or the modules are in use without a target:
then nothing is attached. See `paired` and `measuring`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import Traffic, compiled_traffic, traffic
from bench.outcome import Outcome
from bench.pods import SERVER_ADDRESS, Node, cgroup, nic, node, root_cgroup, sleeper
from bench.probing import engine_with_cache, measuring, slots_of, without_target
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Paired, Spread, paired, verdict
from latencyprobe_agent.desired import CgroupSelector, PidSelector
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime.engine import KernelEngine

DEFAULT_ROUNDS = 15
SECONDS = 0.6
BRIDGE, NIC, NODE = "pod to pod, behind a bridge", "pod to beyond a NIC", "node to pod"
NO_TARGET = "no target on the node"
ROOT_PROCESS = "strangers of --pid, root cgroup"
STRANGERS, TARGETS = "strangers", "targets"
LEAST: Mapping[str, float] = {NO_TARGET: 1.0, STRANGERS: 0.93, ROOT_PROCESS: 0.93, TARGETS: 0.85}
TOLERANCE = 0.005
"""Ratios are given with two digits, and nothing attached has a ratio of 1.00 in them."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Traffic on each path, and the slots of each part that the traffic may have."""

    pods: Node
    sources: Mapping[str, Traffic]
    slots: Mapping[str, Mapping[int, SlotSpec]]


@contextmanager
def scene() -> Iterator[Scene]:
    """Make the pods and their traffic, for the time of the `with` block."""
    with ExitStack() as stack:
        program = stack.enter_context(compiled_traffic())
        pods = stack.enter_context(node())
        far = stack.enter_context(nic(pods))
        busy, idle = (stack.enter_context(cgroup(role)) for role in ("busy", "idle"))
        client, server = pods.client, pods.server
        ends = {
            BRIDGE: (client, server, SERVER_ADDRESS),
            NIC: (client, None, far),
            NODE: (pods.host, server, SERVER_ADDRESS),
        }
        yield Scene(
            pods,
            {
                name: stack.enter_context(traffic(program, *of, cgroup=busy))
                for name, of in ends.items()
            },
            {
                STRANGERS: slots_of(_idle_pod(stack, pods, idle)),
                ROOT_PROCESS: slots_of(_root_process(stack, pods)),
                TARGETS: slots_of(CgroupSelector(str(busy))),
            },
        )


def _idle_pod(stack: ExitStack, pods: Node, directory: Path) -> CgroupSelector:
    stack.enter_context(sleeper(pods.idle, directory))
    return CgroupSelector(str(directory))


def _root_process(stack: ExitStack, pods: Node) -> PidSelector:
    return PidSelector(stack.enter_context(sleeper(pods.host, root_cgroup())))


def rate(source: Traffic) -> float:
    """Return the transactions a second of one slice."""
    time.sleep(0.02)  # let the effects of changed programs settle
    return source.exchange(SECONDS).rate


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all parts on each path, one path after the other."""
    foreign = foreign_programs()
    found: dict[str, Paired] = {}
    with scene() as made, tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        bar = progress.add_task("paths", total=rounds * sum(map(len, map(_parts, made.sources))))
        async with engine_with_cache(made.pods.host.inode, Path(objects)) as engine:
            for path, source in made.sources.items():
                found[path] = await paired(
                    {part: _arm(engine, made, part) for part in _parts(path)},
                    partial(rate, source),
                    rounds,
                    partial(progress.advance, bar),
                )
    return _outcome(found, foreign)


def _parts(path: str) -> tuple[str, ...]:
    return (ROOT_PROCESS,) if path == NODE else (NO_TARGET, STRANGERS, ROOT_PROCESS, TARGETS)


def _arm(
    engine: KernelEngine, made: Scene, part: str
) -> Callable[[], AbstractAsyncContextManager[None]]:
    if part == NO_TARGET:
        return partial(without_target, engine)
    return partial(measuring, engine, made.slots[part])


def _outcome(found: Mapping[str, Paired], foreign: int) -> Outcome:
    table = Table(title="Rate of TCP requests and responses on one CPU, probed : unprobed")
    for heading in ("path", "the traffic is of", f"ratio: {MEDIAN}", "target", ""):
        table.add_column(heading, justify="right" if heading.startswith("ratio") else "left")
    rows = []
    for path, paired_slices in found.items():
        for part, ratios in paired_slices.ratios.items():
            spread, least = Spread.of(ratios), LEAST[part]
            is_met = spread.median >= least - TOLERANCE
            table.add_row(path, part, str(spread), f">= {least:.2f}", verdict(met=is_met))
            rows.append(
                {"path": path, "as": part, **spread.document(), "target": least, "met": is_met}
            )
    unprobed = {path: Spread.of(each.unprobed) for path, each in found.items()}
    remarks = [f"Unprobed, {path}: {spread.text(0)} a second." for path, spread in unprobed.items()]
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (table, *remarks),
        {
            "foreign_programs": foreign,
            "unprobed_per_second": {path: each.document() for path, each in unprobed.items()},
            "ratios": rows,
        },
    )
