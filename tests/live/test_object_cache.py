"""Cached objects are loaded without a compiler, and measure; any fault costs a compilation."""

from __future__ import annotations

import asyncio
import os
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count as count_from
from itertools import islice
from pathlib import Path

import pytest

from latencyprobe.domain.coverage import CoverageState
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.load.cache import CachedObject, ObjectCache
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.load.object_file import decode, encode
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime import loaded
from latencyprobe_agent.kernel.runtime.engine import KernelEngine
from tests.live.compiled_once import compiled_once
from tests.live.loaded_programs import links_of, programs_of, wait_until_gone
from tests.live.measuring import (
    CLIENT,
    SERVER,
    both,
    count,
    lasting_coverage,
    measure,
    watch_on_host,
)
from tests.live.pods import Namespace, Pod, run
from tests.live.sockets import sent_again
from tests.patience import patient

Start = Callable[..., KernelEngine]
Pair = tuple[Pod, Pod]
ALL = frozenset(DEFAULT_MODULES)
UNUSED_UID = 65534

pytestmark = pytest.mark.own_build


@dataclass(slots=True)
class Node:
    """Agents of one node with a cache in common; what is compiled there, in this process."""

    start: Start
    pair: Pair
    path: Path
    caplog: pytest.LogCaptureFixture
    compilations: list[Request]

    @property
    def cache(self) -> ObjectCache:
        return ObjectCache(self.path)

    @property
    def the_object(self) -> Path:
        """The only file of the cache."""
        (file,) = self.path.iterdir()
        return file

    @property
    def the_line(self) -> str:
        """The only line that the cache has logged."""
        (line,) = (each.message for each in self.caplog.records if each.name.endswith(".cache"))
        return line

    async def fill(self, *, tracing: bool = False, **options: object) -> None:
        """Have an agent compile, or not if that is needless."""
        engine = self.start(cache=self.cache, **options)
        await engine.use(ALL, tracing=tracing)
        await engine.close()

    async def engine(self) -> KernelEngine:
        """An engine on both pods."""
        return await both(self.start, *self.pair, cache=self.cache)

    async def assert_measures(self, engine: KernelEngine) -> None:
        engine.read()
        await assert_measures(engine, self.pair)


async def assert_measures(engine: KernelEngine, pair: Pair) -> None:
    """Both pods have their packets: those that TCP sent once more, too, as the kernel counts."""
    pods = dict(zip((CLIENT, SERVER), pair, strict=True))
    before = {slot: sent_again(pod.namespace) for slot, pod in pods.items()}
    measured, _ = await measure(engine, *pair, 50)
    for slot, pod in pods.items():
        assert count(measured[slot], "rx.total") == 50
        again = sent_again(pod.namespace) - before[slot]
        assert 50 <= count(measured[slot], "tx.total") <= 50 + again


@pytest.fixture
def node(
    start_engine: Start,
    pair: Pair,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Node:
    """A node with an empty cache, whose compiler needs no process."""
    made = Node(start_engine, pair, tmp_path / "objects", caplog, [])

    async def compile_(request: Request) -> Handover:
        made.compilations.append(request)
        return await compiled_once().compile(request)

    monkeypatch.setattr(loaded, "request_object", compile_)
    return made


async def test_a_cached_object_needs_no_process_and_measures(
    start_engine: Start, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ObjectCache(tmp_path / "objects")
    compiled = await both(start_engine, *pair, cache=cache)
    coverage = lasting_coverage(compiled)
    await compiled.close()

    def fails(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fails)
    engine = await both(start_engine, *pair, cache=cache)
    assert lasting_coverage(engine) == coverage
    await assert_measures(engine, pair)


@pytest.mark.parametrize("typed", [True, False], ids=["tp_btf", "raw_tp"])
async def test_an_object_serves_on_another_host_than_it_was_compiled_for(
    node: Node, bridged: tuple[Namespace, Pod, Pod], typed: bool
) -> None:
    host, client, server = bridged
    await node.fill(host_netns=1, typed=typed)

    def start(**options: object) -> KernelEngine:
        return node.start(cache=node.cache, typed=typed, **options)

    engine = await watch_on_host(start, host, client, server)
    before = sent_again(server.namespace)
    measured, _ = await measure(engine, client, server, 50)
    assert len(node.compilations) == 1
    assert count(measured[SERVER], "rx.host") == 50
    again = sent_again(server.namespace) - before
    assert 50 <= count(measured[SERVER], "tx.host") <= 50 + again


@pytest.mark.parametrize("tracing", [False, True], ids=["", "tracing"])
async def test_an_agent_that_starts_again_has_its_programs_loaded_and_none_attached(
    node: Node, tracing: bool
) -> None:
    await node.fill(tracing=tracing)
    engine = await restarted(node, tracing=tracing)
    loaded_ahead = programs_of(os.getpid())
    assert not links_of(os.getpid())
    client, server = node.pair
    engine.assign({CLIENT: client.spec(), SERVER: server.spec()})
    await engine.use(ALL, tracing=tracing)
    assert loaded_ahead <= programs_of(os.getpid())
    await node.assert_measures(engine)
    assert len(node.compilations) == 1


async def test_an_agent_that_starts_again_and_ends_leaves_no_program(node: Node) -> None:
    await node.fill()
    engine = await restarted(node)
    programs = programs_of(os.getpid())
    await engine.close()
    wait_until_gone(programs)


async def restarted(node: Node, *, tracing: bool = False) -> KernelEngine:
    """Start an agent, and wait until it has loaded programs and measured the dispatch."""
    before = programs_of(os.getpid())
    engine = node.start(cache=node.cache)
    engine.prepare(tracing=tracing)
    deadline = time.monotonic() + patient(60)
    while len(programs_of(os.getpid()) - before) < 20 or is_measuring_dispatch():
        assert time.monotonic() < deadline, "no programs are loaded"
        await asyncio.sleep(0.05)
    return engine


def is_measuring_dispatch() -> bool:
    """Whether a program and a link exist that only measure what a call costs."""
    return any("latencyprobe-dispatch" in thread.name for thread in threading.enumerate())


async def test_each_set_of_modules_has_an_object_of_its_own(node: Node) -> None:
    engine = node.start(cache=node.cache)
    for _ in range(2):
        for modules in (frozenset({Module.TCP}), frozenset({Module.IRQ}), frozenset(Module)):
            await engine.use(modules)
            active = {s.name for s in engine.coverage if s.state is not CoverageState.IDLE}
            assert ("irq.hard" in active) == (Module.IRQ in modules)
    assert [set(each.modules) for each in node.compilations] == [{"tcp"}, {"irq"}, set(Module)]


# Faults


def truncate(node: Node) -> None:
    os.truncate(node.the_object, node.the_object.stat().st_size // 2)


def change_a_byte(node: Node) -> None:
    content = bytearray(node.the_object.read_bytes())
    content[-100] ^= 1
    node.the_object.write_bytes(content)


def take_another_kernels(node: Node) -> None:
    key = node.the_object.stem
    with node.cache.opened() as folder:
        assert folder is not None
        cached = folder.read(key)
        assert cached is not None
        other = "0" * len(key)
        folder.write(other, cached)
    (node.path / f"{other}.object").rename(node.path / f"{key}.object")


def give_away(node: Node) -> None:
    os.chown(node.the_object, UNUSED_UID, -1)


def let_others_write(node: Node) -> None:
    node.the_object.chmod(0o660)


def give_away_the_folder(node: Node) -> None:
    os.chown(node.path, UNUSED_UID, -1)


def let_others_into_the_folder(node: Node) -> None:
    node.path.chmod(0o777)


def make_the_folder_a_link(node: Node) -> None:
    node.path.rename(node.path.with_name("elsewhere"))
    node.path.symlink_to(node.path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        change_a_byte,
        take_another_kernels,
        give_away,
        let_others_write,
        give_away_the_folder,
        let_others_into_the_folder,
        make_the_folder_a_link,
    ],
)
async def test_a_fault_costs_a_compilation_and_a_line_of_the_log(
    node: Node, spoil: Callable[[Node], None]
) -> None:
    await node.fill()
    spoil(node)
    node.compilations.clear()
    engine = await node.engine()
    assert len(node.compilations) == 1
    assert node.the_line.startswith("cannot use the ")
    await node.assert_measures(engine)


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A file system of its own there."""
    path.mkdir(0o700, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "none", str(path))
    try:
        yield
    finally:
        run("umount", str(path))


@pytest.mark.parametrize(
    ("options", "answer"), [("size=8k", "(ENOSPC)"), ("ro", "(EROFS)"), ("nr_inodes=1", "(ENOSPC)")]
)
async def test_a_full_or_read_only_disk_costs_a_compilation_and_a_line(
    node: Node, options: str, answer: str
) -> None:
    with mounted(node.path, options):
        engine = await node.engine()
        assert os.listdir(node.path) == []
    assert len(node.compilations) == 1
    assert node.the_line.startswith("cannot cache the object ")
    assert answer in node.the_line
    await node.assert_measures(engine)


async def test_a_read_only_disk_serves_what_is_on_it(node: Node) -> None:
    with mounted(node.path, "size=8m"):
        await node.fill()
        run("mount", "-o", "remount,ro", str(node.path))
        node.compilations.clear()
        await node.fill()
    assert node.compilations == []


EXIT_ALONE = struct.pack("<BBhi", 0x95, 0, 0, 0)  # without a value to return


def spoil_program(node: Node, function: str) -> None:
    """Have an object with a program that the verifier refuses, and with the right checksum."""
    key = node.the_object.stem
    with node.cache.opened() as folder:
        assert folder is not None
        cached = folder.read(key)
        assert cached is not None
        compiled = decode(cached.content)
        program = replace(compiled.programs[function], code=EXIT_ALONE, maps=(), constants=())
        spoilt = replace(compiled, programs={**compiled.programs, function: program})
        folder.write(key, CachedObject(encode(spoilt), cached.attached))


async def test_an_object_that_the_verifier_refuses_is_compiled_again_once(node: Node) -> None:
    await node.fill()
    spoil_program(node, "on_tcp_probe")
    node.compilations.clear()
    engine = await node.engine()
    assert len(node.compilations) == 1
    assert "the kernel attaches a cached object otherwise; compiling" in node.caplog.text
    await node.assert_measures(engine)
    node.compilations.clear()
    await node.fill()
    assert node.compilations == []


async def test_two_agents_at_once_both_measure_and_leave_one_object(node: Node) -> None:
    engines = await asyncio.gather(node.engine(), node.engine())
    assert node.the_object.is_file()
    for engine in engines:
        await node.assert_measures(engine)
    node.compilations.clear()
    await node.fill()
    assert node.compilations == []
    assert "cached object" not in node.caplog.text


async def test_without_free_descriptors_the_object_stays_and_the_error_says_what_to_do(
    node: Node,
) -> None:
    await node.fill()
    node.compilations.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    engine = node.start(cache=node.cache)
    taken = set(map(int, os.listdir("/proc/self/fd")))
    free = (number for number in count_from(0) if number not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, 20, None)), hard))
    try:
        with pytest.raises(EngineError, match=r"Too many open files.* raise it \(ulimit -n\)"):
            await engine.use(ALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await engine.use(ALL)
    assert node.compilations == []
