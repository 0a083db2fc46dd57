"""The rate that programs in wide use keep: beside a target, and as targets.

A server and its client are pods behind a bridge. Either a third pod, which is idle, is the target,
so that both are strangers; or both are targets. Each part is measured with the default hooks, and
with those on cgroups and devices. The kernel's run-time statistics are off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from bench.network import compiled_traffic, traffic
from bench.outcome import Outcome
from bench.paths import rate
from bench.pods import SERVER_ADDRESS, Node, cgroup, node, sleeper
from bench.probing import engine_with_cache, measuring, slots_of
from bench.programs import foreign_programs
from bench.ratio import MEDIAN, Spread, paired, verdict
from bench.real_programs import PROGRAMS, Inside, Program, serving
from latencyprobe_agent.desired import CgroupSelector
from latencyprobe_agent.kernel.contract import SlotSpec

DEFAULT_ROUNDS = 15
REQUESTS = "requests and responses of 64 bytes"
STRANGERS, TARGETS = "strangers", "targets"
LEAST: Mapping[str, float] = {STRANGERS: 0.98, TARGETS: 0.93}
LEAST_OF_REQUESTS: Mapping[str, float] = {STRANGERS: 0.93, TARGETS: 0.85}
HOOKS: Mapping[str, bool] = {"the default": False, "scoped": True}

Rate = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Scene:
    """The pods, the cgroup of the busy ones, and the slots of each part that they may have."""

    pods: Node
    busy: Path
    slots: Mapping[str, Mapping[int, SlotSpec]]


async def run(rounds: int, progress: Progress) -> Outcome:
    """Measure all programs, one after the other."""
    foreign = foreign_programs()
    for program in PROGRAMS:
        program.require()
    ratios: dict[str, Mapping[str, Sequence[float]]] = {}
    unprobed: dict[str, Sequence[float]] = {}
    with _scene() as scene, tempfile.TemporaryDirectory(prefix="latencyprobe-bench-") as objects:
        async with AsyncExitStack() as stack:
            arms = {}
            for hooks, scoped in HOOKS.items():
                engine = await stack.enter_async_context(
                    engine_with_cache(scene.pods.host.inode, Path(objects), scoped=scoped)
                )
                for part, slots in scene.slots.items():
                    arms[_arm(part, hooks)] = partial(measuring, engine, slots)
            loads = _loads(scene)
            bar = progress.add_task("neighbours", total=rounds * len(arms) * len(loads))
            for name, load in loads.items():
                with load as measured:
                    found = await paired(arms, measured, rounds, partial(progress.advance, bar))
                unprobed[name], ratios[name] = found.unprobed, found.ratios
    return _outcome(ratios, unprobed, foreign)


def _arm(part: str, hooks: str) -> str:
    return f"{part}, {hooks} hooks"


@contextmanager
def _scene() -> Iterator[_Scene]:
    with ExitStack() as stack:
        pods = stack.enter_context(node())
        busy, idle = (stack.enter_context(cgroup(role)) for role in ("busy", "idle"))
        for namespace, directory in ((pods.client, busy), (pods.server, busy), (pods.idle, idle)):
            stack.enter_context(sleeper(namespace, directory))
        slots = {
            STRANGERS: slots_of(CgroupSelector(str(idle))),
            TARGETS: slots_of(CgroupSelector(str(busy))),
        }
        yield _Scene(pods, busy, slots)


def _loads(scene: _Scene) -> Mapping[str, AbstractContextManager[Rate]]:
    programs = {program.name: _program(program, scene) for program in PROGRAMS}
    return {**programs, REQUESTS: _requests(scene)}


@contextmanager
def _program(program: Program, scene: _Scene) -> Iterator[Rate]:
    server, client = (
        Inside(namespace, scene.busy) for namespace in (scene.pods.server, scene.pods.client)
    )
    with serving(program, server, client) as load:
        yield load.measured


@contextmanager
def _requests(scene: _Scene) -> Iterator[Rate]:
    ends = (scene.pods.client, scene.pods.server, SERVER_ADDRESS)
    with compiled_traffic() as program, traffic(program, *ends, cgroup=scene.busy) as source:
        yield partial(rate, source)


def _outcome(
    ratios: Mapping[str, Mapping[str, Sequence[float]]],
    unprobed: Mapping[str, Sequence[float]],
    foreign: int,
) -> Outcome:
    table = Table(title="The rate that programs keep, probed : unprobed")
    for heading in ("program", "as", "hooks", f"ratio: {MEDIAN}", "target", ""):
        table.add_column(heading, justify="right" if heading.startswith("ratio") else "left")
    found = []
    for program, by_arm in ratios.items():
        wanted = LEAST_OF_REQUESTS if program == REQUESTS else LEAST
        for part, least in wanted.items():
            for hooks in HOOKS:
                spread = Spread.of(by_arm[_arm(part, hooks)])
                is_met = spread.median >= least
                texts = (program, part, hooks, str(spread), f">= {least}")
                table.add_row(*texts, verdict(met=is_met))
                row = {"program": program, "as": part, "hooks": hooks, **spread.document()}
                found.append({**row, "target": least, "met": is_met})
    remarks = ["Server and client of a program share one CPU. Their pods are behind a bridge."]
    if foreign:
        remarks.append(f"[yellow]{foreign} tracing programs of others are loaded as well.[/]")
    return Outcome(
        (table, *remarks),
        {
            "foreign_programs": foreign,
            "unprobed_per_second": {
                name: Spread.of(rates).document() for name, rates in unprobed.items()
            },
            "ratios": found,
        },
    )
