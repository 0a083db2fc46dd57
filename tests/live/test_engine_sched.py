"""Module sched: what threads waited for a CPU, against the scheduler's own account."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import NOTHING, Measurement
from latencyprobe.domain.stages import STAGES, Module
from latencyprobe_agent.kernel.contract import SlotSpec, ThreadLimits
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.hidden_events import TRIES, counts_of
from tests.live.loaded_programs import programs_of
from tests.live.measuring import CLIENT, SERVER, count, measure
from tests.live.pods import Pod, cgroup
from tests.live.sockets import udp_socket
from tests.live.targets import python, until

Start = Callable[..., KernelEngine]
CPU = 0
ROUNDS = 20
MS = 1_000_000
# Four threads that sleep and work in turns, and stay when they are done.
WORKER = """
import sys, threading, time

def work():
    for _ in range(150):
        time.sleep(0.002)
        until = time.thread_time() + 0.001
        while time.thread_time() < until:
            pass
    everybody.wait()
    ends.wait()

everybody, ends = threading.Barrier(5), threading.Event()
print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
everybody.wait()
print("done", flush=True)
sys.stdin.readline()
ends.set()
"""
# One thread after another, none for long.
SHORT_THREADS = """
import sys, threading

print("ready", flush=True)
sys.stdin.readline()
for _ in range(2000):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
print("done", flush=True)
sys.stdin.readline()
"""
# More threads at once than a target may have: a quarter of the table.
MANY_THREADS = """
import sys, threading

threading.stack_size(1 << 16)
print("ready", flush=True)
sys.stdin.readline()
ends = threading.Event()
threads = [threading.Thread(target=ends.wait) for _ in range(2500)]
for thread in threads:
    thread.start()
print("done", flush=True)
sys.stdin.readline()
ends.set()
for thread in threads:
    thread.join()
print("done", flush=True)
sys.stdin.readline()
"""


THOUSAND_THREADS = MANY_THREADS.replace("2500", "1000")
HUNDRED_THREADS = MANY_THREADS.replace("2500", "100")

pytestmark = pytest.mark.unscoped


@dataclass(frozen=True, slots=True)
class RunDelay:
    """What the scheduler says of threads: time spent on a run queue, and how often a CPU was lost,
    which is how often it was got if they are at rest.

    schedstat has a number of runs too, which leaves out those of a thread that was preempted on its
    way to sleep: sched_info_depart(), kernel/sched/stats.h. Kernels that preempt themselves
    (PREEMPT_LAZY, Debian's since Linux 7) do that now and then.
    """

    waited_ns: int
    runs: int

    @classmethod
    def of(cls, pid: int) -> RunDelay:
        """Of all threads that a process has."""
        tasks = tasks_of(pid)
        waits = [task.joinpath("schedstat").read_text().split()[1] for task in tasks]
        return cls(sum(map(int, waits)), sum(map(context_switches, tasks)))

    def __sub__(self, other: RunDelay) -> RunDelay:
        return RunDelay(self.waited_ns - other.waited_ns, self.runs - other.runs)


def context_switches(task: Path) -> int:
    """Away from a thread."""
    lines = task.joinpath("status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)


def tasks_of(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def wait_until_at_rest(pid: int) -> None:
    """Wait until every thread of a process sleeps.

    One that is preempted on its way to sleep is not at rest, whatever its state says; this file
    tells: task_current_syscall(), lib/syscall.c.
    """
    until(lambda: all(map(is_at_rest, tasks_of(pid))), f"{pid} at rest")


def is_at_rest(task: Path) -> bool:
    """Whether a thread sleeps, or has ended since it was listed."""
    try:
        return task.joinpath("syscall").read_text() != "running\n"
    except (FileNotFoundError, ProcessLookupError):
        return True


def agrees(measured: Histogram, truth: RunDelay) -> bool:
    """Whether these are the same waits, but for those that ended or began with no event.

    The virtual machine that these tests were written on lets no tracer see it when a CPU goes from
    some threads of its own supervisor to another thread: ftrace misses the same switches.
    The account is by the run queue's clock, which is up to 4 % ahead in a guest on a busy machine.
    """
    seen = measured.count / truth.runs
    tolerated = 0.05 + 4 * (1 - seen)
    return 0.9 < seen <= 1 and measured.sum_ns == pytest.approx(truth.waited_ns, rel=tolerated)


def starve(pid: int) -> None:
    """Put a process behind all others of one CPU."""
    os.sched_setaffinity(pid, {CPU})
    os.setpriority(os.PRIO_PROCESS, pid, 15)


@contextmanager
def hogs(number: int, nice: int = 0) -> Iterator[None]:
    """Processes that leave little of the CPU."""
    with ExitStack() as stack:
        for _ in range(number):
            process = subprocess.Popen(python("while True: pass"))
            stack.callback(process.wait)
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {CPU})
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        yield


async def start(
    start_engine: Start,
    spec: SlotSpec,
    *,
    typed: bool = True,
    modules: frozenset[Module] = frozenset({Module.RX, Module.SCHED}),
) -> KernelEngine:
    engine = start_engine(typed=typed)
    engine.assign({SERVER: spec})
    await engine.use(modules)
    return engine


def ask(
    engine: KernelEngine,
    client: Pod,
    server: Pod,
    *options: str,
    is_starved: bool,
    begin: Callable[[], None] = lambda: None,
) -> tuple[Measurement, RunDelay]:
    """Requests and replies; what was measured meanwhile, and what the scheduler says.

    `begin`: what to do first, with a server that nobody starves yet.
    """
    where = (server.address, "7000", "60", *options)
    serving = server.start("server", *where, "--stay")
    asking = client.start("client", *where)
    try:
        begin()
        if is_starved:
            starve(serving.pid)
        engine.read()
        before = RunDelay.of(serving.pid)
        asking.go()
        assert asking.result()["sent"] == 60
        serving.account()
        wait_until_at_rest(serving.pid)
        measured, waited = engine.read()[SERVER], RunDelay.of(serving.pid) - before
    finally:
        serving.stop()
        asking.stop()
    return measured, waited


def ask_until_there_is_a_backlog(
    engine: KernelEngine, client: Pod, server: Pod, *options: str
) -> Measurement:
    """Of a starved reader, in a round in which the scheduler let it starve, and without a wait that
    this machine hid: see agrees().

    It has read from its socket before: until then nobody knows whose waits are to be counted, and
    only the last few of its own are remembered.
    """

    def be_read_once() -> None:
        engine.read()
        with udp_socket(client.namespace) as sending:
            sending.sendto(b"d", (server.address, 7000))
        until(
            lambda: count(engine.read().get(SERVER, NOTHING), "rx.total"),
            "the first datagram read",
        )

    for _ in range(ROUNDS):
        measured, waited = ask(
            engine, client, server, *options, is_starved=True, begin=be_read_once
        )
        seen_ns = measured.stage("sched.runqueue").histogram.sum_ns
        is_backlog = measured.stage("rx.socket").histogram.max_ns > 20 * MS
        if is_backlog and seen_ns > 0.97 * waited.waited_ns:
            return measured
    raise AssertionError(f"no backlog in {ROUNDS} rounds, or never all of the reader's waits seen")


def ask_until_all_was_seen(
    engine: KernelEngine, client: Pod, server: Pod, *options: str
) -> tuple[Measurement, RunDelay]:
    """Of a reader, in a round that starved it and in which this machine hid no long wait."""
    for _ in range(ROUNDS):
        measured, waited = ask(engine, client, server, *options, is_starved=True)
        runqueue = measured.stage("sched.runqueue").histogram
        assert runqueue.sum_ns < 1.03 * waited.waited_ns
        if waited.waited_ns > 30 * MS and agrees(runqueue, waited):
            return measured, waited
    raise AssertionError(f"never starved in {ROUNDS} rounds, or never all of its long waits seen")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_reader_starved_by_hogs_is_found_in_rx_wakeup(
    start_engine: Start, pair: tuple[Pod, Pod], protocol: str, typed: bool
) -> None:
    client, server = pair
    engine = await start(start_engine, server.spec(), typed=typed)
    with hogs(2, nice=-10):
        measured, waited = ask_until_all_was_seen(engine, client, server, "--protocol", protocol)
    wakeup, socket = (measured.stage(name).histogram for name in ("rx.wakeup", "rx.socket"))
    assert wakeup.sum_ns > 0.75 * socket.sum_ns
    assert wakeup.sum_ns < 1.01 * waited.waited_ns
    assert wakeup.max_ns <= socket.max_ns
    assert wakeup.count <= socket.count
    assert socket.count in counts_of(60)


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_a_starved_reader_is_found_without_the_module(
    start_engine: Start, pair: tuple[Pod, Pod], typed: bool
) -> None:
    client, server = pair
    engine = await start(start_engine, server.spec(), typed=typed, modules=frozenset({Module.RX}))
    with hogs(2, nice=-10):
        for _ in range(ROUNDS):
            measured, waited = ask(engine, client, server, is_starved=True)
            if waited.waited_ns > 30 * MS:
                break
        else:
            raise AssertionError(f"never starved in {ROUNDS} rounds")
    delay_ns, socket = measured.counters["readerDelayNs"], measured.stage("rx.socket").histogram
    # Nobody knows how much of the first read's wait was for a CPU, and it may be the longest.
    assert 0.6 * (socket.sum_ns - socket.max_ns) < delay_ns <= socket.sum_ns
    assert delay_ns < 1.01 * waited.waited_ns


async def test_a_reader_that_sleeps_is_not_kept_from_a_cpu(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await start(start_engine, server.spec(), modules=frozenset({Module.RX}))
    options = ("--read-delay-ms", "5")
    measured, waited = ask(engine, client, server, *options, is_starved=False)
    assert measured.stage("rx.socket").histogram.mean_ns > 4 * MS
    assert measured.counters.get("readerDelayNs", 0) <= 1.01 * waited.waited_ns


async def test_a_backlog_of_a_starved_reader_is_all_its_waits_long(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await start(start_engine, server.spec())
    with hogs(2, nice=-10):
        measured = ask_until_there_is_a_backlog(
            *(engine, client, server, "--protocol", "udp", "--one-way", "--gap-ms", "1")
        )
    wakeup, socket = (measured.stage(name).histogram for name in ("rx.wakeup", "rx.socket"))
    assert 0.75 * socket.sum_ns < wakeup.sum_ns <= socket.sum_ns


@pytest.mark.every_kernel
async def test_a_sleeping_reader_is_not_found_in_rx_wakeup(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    client, server = pair
    engine = await start(start_engine, server.spec())
    measured, waited = ask(engine, client, server, "--read-delay-ms", "12", is_starved=False)
    wakeup, socket = (measured.stage(name).histogram for name in ("rx.wakeup", "rx.socket"))
    # Other load of this machine may keep the reader waiting, too: the scheduler knows how long. One
    # wait of the reader counts for every packet that it finds then.
    assert socket.percentile(50) > 6 * MS
    assert wakeup.sum_ns < 0.2 * socket.sum_ns or wakeup.max_ns < waited.waited_ns
    assert (socket.sum_ns - wakeup.sum_ns) / socket.count > 5 * MS


@contextmanager
def worker(code: str, pod: Pod) -> Iterator[Worker]:
    """A program in a pod, on the CPU of the hogs."""
    join = f"echo $$ > {pod.cgroup}/cgroup.procs && exec ip netns exec {pod.namespace.name}"
    process = subprocess.Popen(
        ["taskset", "-c", str(CPU), "sh", "-c", f'{join} "$@"', "sh", *python(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.communicate()


class Worker:
    """A program that says when it is ready, works on command, and says when it is done."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid, self._input, self._output = process.pid, process.stdin, process.stdout
        self._wait_for("ready")

    def work(self) -> None:
        """Returns when it is done and all its threads are at rest."""
        self._input.write("\n")
        self._input.flush()
        self._wait_for("done")

    def _wait_for(self, word: str) -> None:
        line = self._output.readline()
        assert line == f"{word}\n", f"the worker said {line!r}"
        wait_until_at_rest(self.pid)


def spec_of(pod: Pod, pid: int, named_by: str) -> SlotSpec:
    netns = frozenset({pod.namespace.inode})
    specs = {
        "process": SlotSpec(tgids=frozenset({pid}), netns=netns),
        "cgroup": pod.spec(),
        "network namespace": SlotSpec(netns_wide=netns, netns=netns),
    }
    return specs[named_by]


@pytest.mark.parametrize("named_by", ["process", "cgroup", "network namespace"])
@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(True, id="tp_btf", marks=pytest.mark.every_kernel),
        pytest.param(False, id="raw_tp"),
    ],
)
async def test_the_waits_of_all_threads_agree_with_the_schedulers_account(
    start_engine: Start, pair: tuple[Pod, Pod], named_by: str, typed: bool
) -> None:
    _, pod = pair
    engine = start_engine(typed=typed)
    for _ in TRIES:
        with hogs(1), worker(WORKER, pod) as program:
            engine.assign({SERVER: spec_of(pod, program.pid, named_by)})
            await engine.use(frozenset({Module.SCHED}))
            engine.read()
            before = RunDelay.of(program.pid)
            program.work()
            measured = engine.read()[SERVER].stage("sched.runqueue")
            truth = RunDelay.of(program.pid) - before
        seen = measured.histogram
        assert truth.runs > 600
        assert truth.waited_ns > 100 * MS
        assert measured.lost == 0
        assert 0.9 * truth.runs < seen.count <= truth.runs
        assert seen.sum_ns < 1.03 * truth.waited_ns
        if agrees(seen, truth):
            return
        assert seen.count < truth.runs, f"{seen.sum_ns} ns, and no wait was hidden: {truth}"
    raise AssertionError(f"never all of the long waits seen in {len(TRIES)} rounds")


def entries(map_name: str) -> int:
    """How many entries a map of this process's programs has."""
    ours = programs_of(os.getpid())
    maps = {
        id_
        for program in bpftool("prog", "show")
        if program["id"] in ours
        for id_ in program.get("map_ids", ())
    }
    (found,) = (
        m["id"] for m in bpftool("map", "show") if m["id"] in maps and m["name"] == map_name
    )
    return len(bpftool("map", "dump", "id", str(found)))


def bpftool(*arguments: str) -> list[dict[str, Any]]:
    shown = subprocess.run(
        ["bpftool", "-j", *arguments], check=True, capture_output=True, text=True
    )
    answer: list[dict[str, Any]] = json.loads(shown.stdout)
    return answer


async def test_threads_of_others_do_not_count(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    other, pod = pair
    with hogs(1), worker(WORKER, pod) as program:
        engine = start_engine()
        engine.assign({SERVER: other.spec()})
        await engine.use(frozenset({Module.SCHED}))
        program.work()
        assert engine.read() == {}
        engine.assign({SERVER: pod.spec()})
        with worker(WORKER, pod) as another:
            another.work()
        assert count(engine.read()[SERVER], "sched.runqueue") > 600


@pytest.mark.every_kernel
async def test_a_thread_is_forgotten_when_it_ends(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    _, pod = pair
    engine = await start(start_engine, pod.spec())
    with worker(SHORT_THREADS, pod) as program:
        program.work()
        measured = engine.read()[SERVER].stage("sched.runqueue")
    assert measured.histogram.count > 4000
    assert measured.lost == 0
    until(lambda: entries("threads") == 0, "no thread is remembered")


async def start_both(start_engine: Start, crowded: Pod, other: Pod) -> KernelEngine:
    """An engine with the module sched on both pods."""
    engine = start_engine()
    engine.assign({CLIENT: crowded.spec(), SERVER: other.spec()})
    await engine.use(frozenset({Module.SCHED}))
    return engine


async def test_a_target_with_very_many_threads_loses_some_and_another_one_none(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    crowded, other = pair
    engine = await start_both(start_engine, crowded, other)
    with worker(MANY_THREADS, crowded) as crowd:
        crowd.work()
        with worker(WORKER, other) as program:
            program.work()
        measured = engine.read()
        crowd.work()
    lost = {slot: measured[slot].stage("sched.runqueue").lost for slot in (CLIENT, SERVER)}
    assert lost[CLIENT] >= 2500 - 2048
    assert lost[SERVER] == 0
    assert count(measured[SERVER], "sched.runqueue") > 600
    until(lambda: entries("threads") == 0, "no thread is remembered")
    engine.read()
    with worker(SHORT_THREADS, crowded) as program:  # their room is free again
        program.work()
        assert engine.read()[CLIENT].stage("sched.runqueue").lost == 0


@contextmanager
def pods_beside(pod: Pod, number: int) -> Iterator[list[Pod]]:
    """More pods in the network namespace of this one."""
    with ExitStack() as stack:
        yield [
            replace(pod, cgroup=stack.enter_context(cgroup(f"{pod.cgroup.name}-{index}")))
            for index in range(number)
        ]


async def test_a_tenant_with_very_many_threads_loses_some_and_another_tenant_none(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    crowded, other = pair
    engine = start_engine()
    with pods_beside(crowded, 4) as pods, ExitStack() as stack:
        slots = {
            slot: replace(pod.spec(), tenant="crowd") for slot, pod in enumerate(pods, SERVER + 1)
        }
        engine.assign({**slots, SERVER: replace(other.spec(), tenant="other")})
        await engine.use(frozenset({Module.SCHED}))
        for pod in pods:
            stack.enter_context(worker(MANY_THREADS, pod)).work()
        engine.read()
        assert engine.lost_parts.keys() == slots.keys()
        with worker(THOUSAND_THREADS, other) as program:
            program.work()
            measured = engine.read()[SERVER].stage("sched.runqueue")
            assert SERVER not in engine.lost_parts
            program.work()
    assert measured.lost == 0
    assert measured.histogram.count > 1000


@pytest.mark.every_kernel
async def test_a_tenant_that_comes_has_its_share_of_threads(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    crowded, other = pair
    engine = start_engine(threads=ThreadLimits(of_target=1000, of_node=60))
    slots = {CLIENT: replace(crowded.spec(), tenant="crowd")}
    engine.assign(slots)
    await engine.use(frozenset({Module.SCHED}))
    with worker(HUNDRED_THREADS, crowded) as crowd:
        crowd.work()
        assert entries("threads") == 15 + 30
        slots[SERVER] = replace(other.spec(), tenant="other")
        engine.assign(slots)
        assert entries("threads") == 10 + 30
        engine.read()
        with worker(WORKER, other) as program:  # of five threads
            program.work()
            measured = engine.read()[SERVER].stage("sched.runqueue")
            assert SERVER not in engine.lost_parts
        crowd.work()
    assert measured.lost == 0
    assert measured.histogram.count > 600


async def test_sleeping_threads_of_a_target_that_is_gone_take_no_room_of_the_next_one(
    start_engine: Start, pair: tuple[Pod, Pod]
) -> None:
    crowded, other = pair
    engine = await start_both(start_engine, crowded, other)
    with worker(MANY_THREADS, crowded) as crowd:
        crowd.work()
        assert entries("threads") >= 2048
        engine.assign({SERVER: other.spec()})
        assert entries("threads") < 2048
        engine.assign({CLIENT: other.spec()})
        engine.read()
        with worker(WORKER, other) as program:
            program.work()
            measured = engine.read()[CLIENT].stage("sched.runqueue")
    assert measured.lost == 0
    assert measured.histogram.count > 600


async def test_modules_load_alone_and_together(start_engine: Start, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    engine = start_engine()
    engine.assign({SERVER: server.spec()})
    for modules in ({Module.SCHED}, {Module.RX}, {Module.RX, Module.SCHED}, frozenset(Module)):
        await engine.use(frozenset(modules))
        states = {stage.name: stage.state for stage in engine.coverage}
        for stage in STAGES:
            is_measured = stage.is_measured_by(modules)
            assert (states[stage.name] is CoverageState.IDLE) != is_measured, stage.name
        measured, _ = await measure(engine, client, server, 20)
        has_waits = "sched.runqueue" in measured.get(SERVER, NOTHING).stages
        assert has_waits == (Module.SCHED in modules)
