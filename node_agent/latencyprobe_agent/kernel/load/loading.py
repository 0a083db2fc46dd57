"""From a compiled object to programs that run: maps, programs and links, by their descriptors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import (
    ENTERED,
    RECEIVED,
    RESOLUTIONS,
    RUN_NUMBERS,
    RUNS,
    RUNS_OF_CPUS,
    LoadConstant,
    map_names,
)
from latencyprobe_agent.kernel.compiled import CompiledObject, MapDefinition
from latencyprobe_agent.kernel.hooks import Event, Hook, events_of
from latencyprobe_agent.kernel.load.cpus import cpu_numbers, received_bits
from latencyprobe_agent.kernel.load.loader import Loader, ScopedHook, link
from latencyprobe_agent.kernel.load.maps import create_maps
from latencyprobe_agent.kernel.load.reach import Reach
from latencyprobe_agent.kernel.request import Request


class Closable(Protocol):
    """Something loaded that its owner closes."""

    def close(self) -> None:
        """Free it."""


# Their threads are kept: a new one may get a heap of its own from libc, which stays. At most two
# objects are loaded at once, for a change of modules and for the next target.
_LOADERS = ThreadPoolExecutor(2, "latencyprobe-load")
_VERIFIERS = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "latencyprobe-verify")
_T = TypeVar("_T", bound=Closable)


@dataclass(slots=True)
class LoadedPrograms:
    """Programs in the kernel, and the maps that the agent uses. The owner closes them.

    `hooks`: those of `programs`; `typed`: they are typed by BTF. `links`: by function; empty if
    they are not attached. `attached`: event to the hook in use; `refused`: event to the kernel's
    answer. `scoped`: event to its hook on cgroups or devices, to which the owner attaches
    `cgroup_programs` and `device_programs`.
    `remarks`: event to the reason why it has none. `messages`: the kernel's answers in full.
    """

    maps: dict[str, int]
    programs: dict[str, int]
    links: dict[str, int]
    attached: Mapping[str, str]
    refused: Mapping[str, str]
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    typed: bool = True
    scoped: Mapping[str, ScopedHook] = field(default_factory=dict)
    cgroup_programs: dict[str, int] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    device_programs: dict[str, int] = field(default_factory=dict)

    def attach(self) -> None:
        """Attach all programs; raise KernelRefusedError and attach none if one is refused."""
        try:
            for function in self.hooks:
                self.attach_one(function)
        except BaseException:
            links, self.links = self.links, {}
            _close(links.values())
            raise

    def link(self, function: str) -> int | None:
        """Return the link of an attached program; None if there is none."""
        return self.links.get(function)

    def attach_one(self, function: str) -> None:
        """Attach a program, if it is not. Raises KernelRefusedError."""
        if function not in self.links:
            hook = self.hooks[function]
            self.links[function] = link(
                hook, self.programs[function], typed=self.typed, maps=self.maps
            )

    def detach_one(self, function: str) -> None:
        """Detach a program, and keep it loaded. Idempotent."""
        if function in self.links:
            os.close(self.links.pop(function))

    def close(self) -> None:
        """Detach and free everything, links first. Idempotent."""
        scoped = [*self.cgroup_programs.values(), *self.device_programs.values()]
        programs = [*self.programs.values(), *scoped]
        descriptors = [*self.links.values(), *programs, *self.maps.values()]
        self.links, self.programs, self.maps = {}, {}, {}
        self.cgroup_programs, self.device_programs = {}, {}
        _close(descriptors)


class LoadingPrograms:
    """Programs that the verifier has, or had, and that are not attached yet.

    The owner calls `attach` once, or `close`.
    """

    def __init__(self, compiled: CompiledObject, request: Request) -> None:
        """Create the maps, and begin to load the first choices in other threads.

        Raises KernelRefusedError if a map is refused; then nothing is left.
        """
        self._begun = _Begun(compiled, request)
        self._events = _events_of(request)
        self._begun.loader.load_ahead(self._events, _VERIFIERS)

    def attach(self) -> LoadedPrograms:
        """Attach the programs, once all are loaded, and end.

        A hook that the kernel refuses is no error. Raises KernelRefusedError if there is no memory
        or no descriptor; then nothing is left.
        """
        loader = self._begun.loader
        try:
            for event in self._events:
                loader.attach(event)
            loader.discard()
        except BaseException:
            self.close()
            raise
        return self._begun.loaded()

    def close(self) -> None:
        """Free everything, once all programs are loaded. Idempotent."""
        self._begun.close()


def load(compiled: CompiledObject, request: Request) -> LoadedPrograms:
    """Create the maps, load the programs and attach them: see LoadingPrograms."""
    return LoadingPrograms(compiled, request).attach()


def load_spare(compiled: CompiledObject, request: Request, like: LoadedPrograms) -> LoadedPrograms:
    """Load the programs that others of this object use, with maps of their own; attach none.

    Raises KernelRefusedError; then nothing is left.
    """
    begun = _Begun(compiled, request)
    try:
        for hook in like.hooks.values():
            begun.loader.load(hook)
        for event, scoped in like.scoped.items():
            begun.loader.load_scoped(event, scoped)
    except BaseException:
        begun.close()
        raise
    spare = begun.loaded()
    spare.attached, spare.refused = like.attached, like.refused
    spare.remarks = like.remarks
    return spare


async def in_thread(work: Callable[[], LoadedPrograms]) -> LoadedPrograms:
    """Load in a thread, since the verifier takes half a second and the event loop has other work.

    What was loaded for a caller that is cancelled is closed.
    """
    loading = begin(work)
    try:
        return await asyncio.wrap_future(loading)
    except asyncio.CancelledError:
        close_when_loaded(loading)
        raise


def begin(work: Callable[[], _T]) -> Future[_T]:
    """Begin to load in a thread."""
    return _LOADERS.submit(work)


def close_in_thread(loading: Closable) -> None:
    """Have something closed that may have to wait for the verifier."""
    _LOADERS.submit(loading.close)


def close_when_loaded(loading: Future[_T]) -> None:
    """Have the result closed, also if no event loop runs any more when it is there."""

    def close(ended: Future[_T]) -> None:
        if not ended.cancelled() and ended.exception() is None:
            ended.result().close()

    loading.add_done_callback(close)


class _Begun:
    """An object whose maps are there, with the loader of its programs."""

    def __init__(self, compiled: CompiledObject, request: Request) -> None:
        """Create the maps. Raises KernelRefusedError and LookupError; then nothing is left."""
        modules = tuple(Module(name) for name in request.modules)
        places = {each.name: place for place, each in enumerate(compiled.maps)}
        self._used = {name: places[name] for name in map_names(modules, trace=request.trace)}
        self._is_typed = compiled.types is not None
        cpus = cpu_numbers()
        bits = received_bits(cpus)
        rows = RESOLUTIONS * cpus
        sizes = {
            RECEIVED: 1 << bits,
            ENTERED: 1 << bits - 1,
            RUNS_OF_CPUS: RUNS * rows,
            RUN_NUMBERS: rows,
        }
        self._maps = create_maps(_sized(each, sizes) for each in compiled.maps)
        constants: dict[int, int] = {
            LoadConstant.HOST_NETNS: request.host_netns,
            LoadConstant.CPU_NUMBERS: cpus,
            LoadConstant.RECEIVED_BITS: bits,
        }
        code = {
            name: each.linked(self._maps, constants) for name, each in compiled.programs.items()
        }
        used = {name: self._maps[place] for name, place in self._used.items()}
        self.loader = Loader(code, compiled.types, without=request.without, maps=used)

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.loader.detach()
        maps, self._maps = self._maps, []
        _close(maps)

    def loaded(self) -> LoadedPrograms:
        """Return what is loaded, and end."""
        maps, self._maps = self._maps, []
        # Programs keep the maps that only they use.
        unused = set(range(len(maps))) - set(self._used.values())
        _close(maps[place] for place in unused)
        return LoadedPrograms(
            {name: maps[place] for name, place in self._used.items()},
            self.loader.programs,
            dict(zip(self.loader.programs, self.loader.links, strict=False)),  # none, of a spare
            self.loader.attached,
            self.loader.refused,
            self.loader.hooks,
            self._is_typed,
            self.loader.scoped,
            self.loader.cgroup_programs,
            self.loader.remarks,
            tuple(self.loader.messages),
            self.loader.device_programs,
        )


def _sized(definition: MapDefinition, sizes: Mapping[str, int]) -> MapDefinition:
    """Return a map with as many elements as this node needs."""
    return replace(definition, max_entries=sizes.get(definition.name, definition.max_entries))


def lacks_alternatives(
    compiled: CompiledObject, request: Request, refused: Mapping[str, str]
) -> bool:
    """Return True if a refused event has alternatives that were not compiled."""
    events = _events_of(request)
    reach = Reach(compiled.types, request.without)
    lacking = [event for event in events if event.name in refused]
    return not reach.functions(lacking, first_only=False) <= compiled.wanted


def _events_of(request: Request) -> tuple[Event, ...]:
    return events_of((Module(name) for name in request.modules), udp=request.udp)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
