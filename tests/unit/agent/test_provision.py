"""Programs come from a cached object if the kernel takes it as it did, else from the compiler."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.abi import map_names
from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.compiled import MapDefinition, Program
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.kernel.hooks import EVENTS, events_of
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.load.object_file import encode
from latencyprobe_agent.kernel.load.provision import Origin, Provided, prepare, provide
from latencyprobe_agent.kernel.request import Request
from tests.patience import patient
from tests.unit.agent.fake_kernel import Kernel, Types

TRACEPOINTS = tuple(
    {each.symbol for event in EVENTS for hook in event.hooks for each in (hook, *hook.also)}
)
ITERATORS = ("bpf_iter_task_file", "bpf_iter_bpf_sk_storage_map")
MODERN = Types(TRACEPOINTS, (*TRACEPOINTS, *ITERATORS))
REQUEST = Request(("rx",), 1)
MAPS = (*map_names((Module.RX,), trace=False), "received")
MAPS_OF_TCP = (*map_names((Module.RX, Module.TCP), trace=False), "received")
COUNT, PENDING = "__preempt_count", "pcpu_hot.softirq_pending"
FIRST, SECOND = "tp_btf/sock_recv_length", "tp_btf/consume_skb"


class Compiler:
    """The compiler of a modern kernel; `compiled` has the functions of each object it has built."""

    def __init__(self) -> None:
        self.compiled: list[set[str]] = []
        self.sources: list[str] = []
        self.failure: EngineError | None = None
        self.types = MODERN
        self.maps = MAPS

    async def compile(self, request: Request) -> Handover:
        if self.failure is not None:
            raise self.failure
        return Handover(encode(compiler._build(request, self.types, [])), "")

    def take(self, source: str, wanted: list[str]) -> compiler._Code:
        assert f"WITH_{wanted[0].upper()}" in source
        self.compiled.append(set(wanted))
        self.sources.append(source)
        return compiler._Code(
            dict.fromkeys(wanted, Program(b"\0" * 16, ((0, len(self.maps) - 1),))),
            tuple(MapDefinition(name, 2, 4, 8, 1, 0) for name in self.maps),
        )


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """A compiler; all descriptors are closed again at the end of the test."""
    made = Compiler()
    monkeypatch.setattr(compiler, "_compile", made.take)
    monkeypatch.setattr(compiler, "version_code", lambda: 7 << 16)
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "objects")


def closed(provided: Provided) -> Provided:
    provided.programs.close()
    return provided


async def test_if_the_kernel_refuses_what_it_seemed_to_have_the_rest_is_compiled(
    kernel: Kernel, compiling: Compiler
) -> None:
    programs = closed(await provide(REQUEST, compiling.compile, None)).programs
    assert programs.attached["UDP read"] == FIRST
    assert [each - {"on_consume_skb"} for each in compiling.compiled] == compiling.compiled

    compiling.compiled.clear()
    kernel.refuses["on_sock_recv_length"] = errno.EACCES
    programs = closed(await provide(REQUEST, compiling.compile, None)).programs
    assert programs.attached["UDP read"] == SECOND
    assert [each & {"on_consume_skb"} for each in compiling.compiled] == [set(), {"on_consume_skb"}]
    assert programs.attached.keys() == {
        event.name for event in events_of({Module.RX}) if event.name != "UDP queue"
    }


async def test_the_agent_keeps_its_own_maps_and_no_other(
    kernel: Kernel, compiling: Compiler
) -> None:
    provided = await provide(REQUEST, compiling.compile, None)
    assert sorted(kernel.maps) == sorted(MAPS)
    assert set(provided.programs.maps) == set(map_names((Module.RX,), trace=False))
    closed(provided)


async def test_an_object_that_was_compiled_once_is_loaded_from_the_cache(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    first = closed(await provide(REQUEST, compiling.compile, cache))
    second = closed(await provide(REQUEST, compiling.compile, cache))
    assert (first.origin, second.origin) == (Origin.COMPILER, Origin.CACHE)
    assert len(compiling.compiled) == 1
    assert second.programs.attached == first.programs.attached
    elsewhere = closed(await provide(Request(("rx",), 2), compiling.compile, cache))
    assert elsewhere.origin is Origin.CACHE  # the host's namespace is put in by loading


async def test_the_variables_that_programs_read_are_those_of_the_cached_object(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    compiling.types = Types(TRACEPOINTS, TRACEPOINTS, (COUNT, PENDING))
    first = closed(await provide(REQUEST, compiling.compile, cache)).programs
    compiling.types = MODERN  # of which nobody asks any more
    cached = closed(await provide(REQUEST, compiling.compile, cache))
    assert cached.origin is Origin.CACHE
    for programs in (first, cached.programs):
        assert programs.attached["softirq context"] == f"percpu/{COUNT}"
        assert programs.attached["NET_RX raise"] == f"percpu/{PENDING}"
    assert {"on_softirq_exit", "on_softirq_raise"}.isdisjoint(name for name, *_ in kernel.loaded)
    (source,) = compiling.sources
    distance = 16 - Types.RUN_QUEUE
    for name in ("PREEMPT_COUNT", "SOFTIRQ_PENDING"):
        assert f"#define {name}_DISTANCE ({distance}LL)\n" in source
        assert f"#define WITH_{name} 1\n" in source


async def test_without_the_variables_the_object_has_programs_and_their_reasons(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    kernel.refuses["on_softirq_raise"] = errno.EACCES
    for _ in range(2):
        programs = closed(await provide(REQUEST, compiling.compile, cache)).programs
        assert programs.attached["softirq context"] == "tp_btf/softirq_exit"
        assert f"percpu/{PENDING}: this kernel has no such" in programs.refused["NET_RX raise"]


async def test_an_object_without_the_programs_for_datagrams_is_another_one(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    for origin in (Origin.COMPILER, Origin.CACHE):
        kernel.loaded.clear()
        provided = closed(await provide(replace(REQUEST, udp=False), compiling.compile, cache))
        assert provided.origin is origin
        assert {"UDP read", "UDP queue"}.isdisjoint(provided.programs.attached)
        assert "on_sock_recv_length" not in {name for name, *_ in kernel.loaded}
    assert "on_sock_recv_length" not in compiling.compiled[-1]


async def test_alternatives_that_were_needed_are_in_the_cached_object(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    kernel.refuses["on_sock_recv_length"] = errno.EACCES
    closed(await provide(REQUEST, compiling.compile, cache))
    assert len(compiling.compiled) == 2
    cached = closed(await provide(REQUEST, compiling.compile, cache))
    assert cached.origin is Origin.CACHE
    assert cached.programs.attached["UDP read"] == SECOND
    assert len(compiling.compiled) == 2


@pytest.mark.parametrize("refused", ["on_listener", "on_state_of_any_socket"])
async def test_a_kernel_that_refuses_to_read_listeners_shows_them_by_an_event(
    kernel: Kernel, compiling: Compiler, refused: str
) -> None:
    functions = (*TRACEPOINTS, "bpf_iter_task_file")
    compiling.types = Types(TRACEPOINTS, functions, counts=("LINUX_MIB_LISTENOVERFLOWS",))
    request = Request(("tcp",), 1)
    compiling.maps = MAPS_OF_TCP
    whole = closed(await provide(request, compiling.compile, None)).programs
    assert whole.attached["listener"] == "iter/task_file"
    assert "on_sk_data_ready" not in compiling.compiled[0]
    assert "listener reading" not in whole.refused
    kernel.refuses[refused] = errno.E2BIG
    kernel.loaded.clear()
    programs = closed(await provide(request, compiling.compile, None)).programs
    assert programs.attached["listener"] == "tp_btf/sk_data_ready"
    assert programs.attached["state change"] == "tp_btf/inet_sock_set_state"
    assert f"cannot load {refused}" in programs.refused["listener reading"]
    assert ("on_inet_sock_set_state" in programs.hooks) is (refused != "on_listener")


async def test_an_object_that_the_verifier_refuses_is_compiled_once_more(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache, caplog: pytest.LogCaptureFixture
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    compiling.compiled.clear()
    kernel.refuses["on_sock_recv_length"] = errno.EACCES
    with caplog.at_level(logging.WARNING):
        again = closed(await provide(REQUEST, compiling.compile, cache))
    assert again.origin is Origin.COMPILER
    assert again.programs.attached["UDP read"] == SECOND
    assert len(compiling.compiled) == 2  # the first choices, then the alternatives too
    (line,) = (record.message for record in caplog.records)
    assert "the kernel attaches a cached object otherwise; compiling it again" in line
    assert closed(await provide(REQUEST, compiling.compile, cache)).origin is Origin.CACHE


async def test_an_object_whose_map_is_refused_is_dropped(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache, caplog: pytest.LogCaptureFixture
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    kernel.refuses["received"] = errno.EINVAL
    compiling.failure = EngineError("compiled")
    with pytest.raises(EngineError, match="compiled"):
        await provide(REQUEST, compiling.compile, cache)
    assert "cannot load a cached object: cannot create map received: Invalid" in caplog.text
    with cache.opened() as folder:
        assert folder is not None
        assert os.listdir(folder._descriptor) == []


@pytest.mark.parametrize("what", ["received", "on_netif_receive_skb", "raw_tracepoint"])
async def test_a_shortage_is_no_refusal_and_leaves_the_object(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache, what: str
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    kernel.refuses[what] = errno.EMFILE
    compiling.failure = EngineError("compiled")
    with pytest.raises(libbpf.KernelRefusedError, match="EMFILE"):
        await provide(REQUEST, compiling.compile, cache)
    kernel.refuses.clear()
    assert closed(await provide(REQUEST, compiling.compile, cache)).origin is Origin.CACHE


async def test_a_folder_that_cannot_be_used_costs_a_compilation_and_a_line(
    kernel: Kernel, compiling: Compiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ObjectCache(tmp_path / "missing" / "objects")
    for number in (1, 2):
        assert closed(await provide(REQUEST, compiling.compile, cache)).origin is Origin.COMPILER
        assert len(compiling.compiled) == len(caplog.records) == number


async def test_two_that_miss_at_once_both_compile_and_the_third_loads(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    async def compile_late(request: Request) -> Handover:
        # The other one compiles, loads and keeps the object meanwhile.
        closed(await provide(REQUEST, compiling.compile, cache))
        return await compiling.compile(request)

    assert closed(await provide(REQUEST, compile_late, cache)).origin is Origin.COMPILER
    assert len(compiling.compiled) == 2
    assert closed(await provide(REQUEST, compiling.compile, cache)).origin is Origin.CACHE


OF_THIS_AGENT = Request((), 1)


async def test_prepared_programs_are_loaded_once_and_attached_later(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    first = closed(await provide(REQUEST, compiling.compile, cache))
    kernel.loaded.clear()
    kernel.attached.clear()
    prepared = prepare(OF_THIS_AGENT, cache)
    assert kernel.attached == []
    second = closed(await provide(REQUEST, compiling.compile, cache, prepared))
    loaded = [name for name, *_ in kernel.loaded]
    assert len(loaded) == len(set(loaded)) > 0
    assert len(kernel.attached) > 0
    assert second.origin is Origin.CACHE
    assert second.programs.attached == first.programs.attached
    assert len(compiling.compiled) == 1


async def test_prepared_programs_that_another_request_does_not_want_are_freed(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    before = open_files()
    prepared = prepare(OF_THIS_AGENT, cache)
    other = replace(REQUEST, udp=False)
    provided = closed(await provide(other, compiling.compile, cache, prepared))
    assert provided.origin is Origin.COMPILER
    deadline = time.monotonic() + patient(30)
    while open_files() > before:
        assert time.monotonic() < deadline, "the prepared programs are still open"
        await asyncio.sleep(0.01)


async def test_prepared_programs_that_the_kernel_attaches_otherwise_are_compiled_again(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    closed(await provide(REQUEST, compiling.compile, cache))
    kernel.refuses["on_sock_recv_length"] = errno.EACCES
    prepared = prepare(OF_THIS_AGENT, cache)
    provided = closed(await provide(REQUEST, compiling.compile, cache, prepared))
    assert provided.origin is Origin.COMPILER
    assert provided.programs.attached["UDP read"] == SECOND


async def test_objects_are_prepared_for_the_agent_that_uses_them_and_never_for_a_trace(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache
) -> None:
    with pytest.raises(LookupError, match="the cache has no object"):
        prepare(OF_THIS_AGENT, cache)
    closed(await provide(REQUEST, compiling.compile, cache))
    closed(await provide(replace(REQUEST, udp=False), compiling.compile, cache))
    with pytest.raises(LookupError, match="the cache has no object"):
        prepare(replace(OF_THIS_AGENT, typed=False), cache)
    with cache.opened() as folder:
        assert folder is not None
        for key, cached in folder.newest():
            assert cached.request is not None
            if not cached.request.udp:
                tracing = replace(cached, request=replace(cached.request, trace=True))
                folder.write(key, tracing)
    prepared = prepare(OF_THIS_AGENT, cache)
    assert prepared.cached.request is not None
    assert prepared.cached.request.udp
    prepared.close()


@pytest.mark.parametrize("traces", [True, False])
async def test_an_agent_that_traces_for_itself_has_its_last_object_prepared(
    kernel: Kernel, compiling: Compiler, cache: ObjectCache, *, traces: bool
) -> None:
    compiling.maps = (*map_names((Module.RX,), trace=True), "received")
    last = replace(REQUEST, trace=traces)
    for request in (replace(REQUEST, trace=not traces), last):
        closed(await provide(request, compiling.compile, cache))
    prepared = prepare(replace(OF_THIS_AGENT, trace=True), cache)
    assert prepared.cached.request is not None
    assert prepared.cached.request.trace is traces
    provided = closed(await provide(last, compiling.compile, cache, prepared))
    assert provided.origin is Origin.CACHE


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
