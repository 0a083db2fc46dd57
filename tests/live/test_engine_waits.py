"""Module sched: the reasons of waits, against the accounts of the scheduler and of a quota."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import Module, cgroup_counter, waits_for_cgroups
from latencyprobe_agent.evidence.known_cgroups import KnownCgroups
from latencyprobe_agent.kernel.abi import ROOMS, WAIT_FOR_CGROUP, WAITS_FOR_CGROUPS, Room
from latencyprobe_agent.kernel.contract import SlotSpec
from latencyprobe_agent.kernel.runtime import slot_rooms
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from latencyprobe_agent.targets.resolver import Resolver
from tests.live.quotas import Account, quota
from tests.live.targets import made_cgroup, python, until

Start = Callable[..., KernelEngine]
TARGET = 3
CPU = 0
MS = 1_000_000
WAITS = ("waitedThrottledNs", "waitedForOwnNs", "waitedForOthersNs")
# Never sleeps: it waits whenever another one has the CPU.
BURN = "while True: pass"


@pytest.fixture(params=[True, False], ids=["tp_btf", "raw_tp"])
def typed(request: pytest.FixtureRequest) -> bool:
    kind: bool = request.param
    return kind


@pytest.fixture
def own() -> Iterator[Path]:
    """The target's cgroup."""
    with made_cgroup() as directory:
        yield directory


@pytest.fixture
def other() -> Iterator[Path]:
    """A neighbour's cgroup."""
    with made_cgroup() as directory:
        yield directory


@dataclass(frozen=True, slots=True)
class Accounts:
    """The kernel's accounts: of the target's threads, of its neighbours', and of its quota."""

    waited_ns: int
    ran_ns: int
    neighbours_ran_ns: int
    quota: Account

    def __sub__(self, before: Accounts) -> Accounts:
        return Accounts(
            self.waited_ns - before.waited_ns,
            self.ran_ns - before.ran_ns,
            self.neighbours_ran_ns - before.neighbours_ran_ns,
            self.quota - before.quota,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured while the target was let go, and the accounts of that time.

    `within`: those of a time that is a little shorter.
    """

    measurement: Measurement
    accounts: Accounts
    within: Accounts

    def of(self, counter: str) -> int:
        return self.measurement.counters.get(counter, 0)

    @property
    def explained_ns(self) -> int:
        return sum(map(self.of, WAITS))

    @property
    def by_name(self) -> dict[str, int]:
        counters = self.measurement.counters
        return {name: ns for name, ns in counters.items() if name.startswith("waitedForCgroup.")}


class Scene:
    """Programs on one CPU, some of them the target's, which are one process group."""

    def __init__(self, engine: KernelEngine, stack: ExitStack, limited: Path | None) -> None:
        self._engine = engine
        self._stack = stack
        self._limited = limited
        self._own: list[int] = []
        self._neighbours: list[int] = []

    def burn(self, *cgroups: Path, is_own: bool = False) -> None:
        """Start a program that never sleeps, in these cgroups."""
        files = " ".join(f"{directory}/cgroup.procs" for directory in dict.fromkeys(cgroups))
        script = f'for file in {files}; do echo $$ > "$file"; done; exec "$@"'
        process = subprocess.Popen(
            ["taskset", "-c", str(CPU), "sh", "-c", script, "sh", *python(BURN)],
            process_group=self._own[0] if is_own and self._own else 0,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        # Among each other they are equals; the rest of the machine has less.
        os.setpriority(os.PRIO_PROCESS, process.pid, -20)
        (self._own if is_own else self._neighbours).append(process.pid)
        name = Path(f"/proc/{process.pid}/comm")
        until(lambda: name.read_text().startswith("python"), "a program in its cgroup")

    def measure(self, is_enough: Callable[[Accounts], bool]) -> Measured:
        """Measure until enough has happened by the kernel's accounts.

        The target stands still while it is read, so that all accounts are of the same time.
        """
        until(lambda: self._accounts().waited_ns > 0, "threads that waited")
        self._hold()
        self._engine.read()
        held = self._accounts()
        self._signal(signal.SIGCONT)
        let_go = self._accounts()

        until(lambda: is_enough(self._accounts() - held), "waits")
        within = self._accounts() - let_go
        self._hold()
        measured = self._engine.read().get(TARGET, NOTHING)
        return Measured(measured, self._accounts() - held, within)

    def _accounts(self) -> Accounts:
        ran_ns, waited_ns = _schedstat(self._own)
        quota = Account.of(self._limited) if self._limited else Account(0, 0, 0)
        return Accounts(waited_ns, ran_ns, _schedstat(self._neighbours)[0], quota)

    def _hold(self) -> None:
        self._signal(signal.SIGSTOP)
        until(lambda: all(map(_stands_still, self._own)), "threads that stand still")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._own[0], number)  # all at once: none runs without the others


def _schedstat(pids: list[int]) -> tuple[int, int]:
    """How long these processes have run, and waited."""
    texts = [Path(f"/proc/{pid}/schedstat").read_text().split() for pid in pids]
    return sum(int(text[0]) for text in texts), sum(int(text[1]) for text in texts)


def _stands_still(pid: int) -> bool:
    """Whether a process is stopped, and off its CPU: task_current_syscall(), lib/syscall.c."""
    process = Path(f"/proc/{pid}")
    state = process.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    return state == "T" and process.joinpath("syscall").read_text() != "running\n"


@contextmanager
def scene(engine: KernelEngine, limited: Path | None = None) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(engine, stack, limited)


def spec(directory: Path) -> SlotSpec:
    return SlotSpec(
        cgroup_ids=frozenset({directory.stat().st_ino}),
        cgroup_directories=frozenset({str(directory)}),
    )


async def start(start_engine: Start, own: Path, *, typed: bool = True) -> KernelEngine:
    engine = start_engine(typed=typed)
    engine.assign({TARGET: spec(own)})
    await engine.use(frozenset({Module.SCHED}))
    return engine


def assert_explained(measured: Measured) -> None:
    """Waits have a reason, and none has two. The beginning of one of many seconds has none."""
    seen_ns = measured.measurement.stage("sched.runqueue").histogram.sum_ns
    assert 0.7 * seen_ns < measured.explained_ns <= seen_ns
    assert 0.7 * measured.accounts.waited_ns < measured.explained_ns
    assert measured.explained_ns < 1.05 * measured.accounts.waited_ns
    assert sum(measured.by_name.values()) <= measured.of("waitedForOthersNs") + MS


def is_about(ns: int, witness_ns: int) -> bool:
    """Within what sampling leaves: a CPU of a busy machine changes hands all the time."""
    return 0.6 * witness_ns < ns < 1.6 * witness_ns


async def test_waits_for_a_hog_of_another_cgroup_are_as_long_as_it_ran(
    start_engine: Start, own: Path, other: Path, typed: bool
) -> None:
    engine = await start(start_engine, own, typed=typed)
    with scene(engine) as running:
        for _ in range(3):
            running.burn(other)
        running.burn(own, is_own=True)
        measured = running.measure(lambda seen: seen.neighbours_ran_ns > 200 * MS)
    assert_explained(measured)
    for_hogs_ns = measured.of(cgroup_counter(id_of(other)))
    assert 0.6 * measured.within.neighbours_ran_ns < for_hogs_ns
    assert for_hogs_ns < 1.6 * measured.accounts.neighbours_ran_ns
    assert measured.of("waitedThrottledNs") == 0
    assert path_of(other, measured) == other


async def test_waits_of_threads_for_each_other_are_as_long_as_those_ran(
    start_engine: Start, own: Path, typed: bool
) -> None:
    engine = await start(start_engine, own, typed=typed)
    with scene(engine) as running:
        for _ in range(4):
            running.burn(own, is_own=True)
        measured = running.measure(lambda seen: seen.ran_ns > 100 * MS)
    assert_explained(measured)
    # While one runs, the other three wait for it.
    assert is_about(measured.of("waitedForOwnNs"), 3 * measured.accounts.ran_ns)
    assert cgroup_counter(id_of(own)) not in measured.by_name


async def test_waits_for_a_quota_are_those_of_the_quotas_account(
    start_engine: Start, own: Path, other: Path, typed: bool
) -> None:
    engine = await start(start_engine, own, typed=typed)
    if any(row.name == "waitedThrottledNs" for row in engine.coverage):
        return  # before 6.6, as test_coverage.py has it
    with (
        quota(own, 5) as limited,
        quota(other, 100) as unlimited,
        scene(engine, limited) as running,
    ):
        # Both are one cgroup below the root: a process in the root would outweigh a cgroup.
        running.burn(other, unlimited)
        running.burn(own, limited, is_own=True)
        measured = running.measure(lambda seen: seen.quota.throttled >= 10)
    assert_explained(measured)
    assert is_about(measured.of("waitedThrottledNs"), measured.accounts.quota.throttled_ns)
    assert measured.of("waitedForOthersNs") > 0
    assert measured.of("waitedForOwnNs") < 0.05 * measured.explained_ns


async def test_cgroups_that_one_target_waits_for_leave_room_for_those_of_another_one(
    start_engine: Start, own: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, later = 8, TARGET + 1
    monkeypatch.setattr(slot_rooms, "ROOMS", {**ROOMS, Room.WAITS_FOR_CGROUPS: most})
    engine = start_engine()
    engine.assign({TARGET: spec(own), later: spec(other)})
    await engine.use(frozenset({Module.SCHED}))
    loaded = engine._object
    assert loaded is not None

    def named(slot: int) -> int:
        """How many cgroups the target waits for by name, since the last reading."""
        assert len(loaded.maps.keys(WAITS_FOR_CGROUPS.name, WAIT_FOR_CGROUP.size)) <= most
        return len(waits_for_cgroups(engine.read().get(slot, NOTHING).counters))

    with ExitStack() as stack, scene(engine) as running:
        for _ in range(2 * most):
            running.burn(stack.enter_context(made_cgroup()))
        running.burn(own, is_own=True)
        until(lambda: named(TARGET) > 0, "names of what the first one waits for")
        running.burn(other)
        until(lambda: named(later) > 0, "names of what the second one waits for")


def path_of(cgroup: Path, measured: Measured) -> Path:
    """The directory of a cgroup, as the agent finds it by the id in these counters."""
    hierarchy = Resolver().hierarchy
    assert hierarchy is not None
    known = KnownCgroups(hierarchy)
    known.look_up(waits_for_cgroups(measured.measurement.counters))
    paths = {each.id: each.path for each in known.among(measured.measurement.counters)}
    return Path(hierarchy.root, paths[id_of(cgroup)].removeprefix("/"))


def id_of(directory: Path) -> int:
    return directory.stat().st_ino
