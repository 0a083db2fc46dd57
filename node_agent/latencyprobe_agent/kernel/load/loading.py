"""From a compiled object to programs that run: maps, programs and links, by their descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import LoadConstant, map_names
from latencyprobe_agent.kernel.compiled import CompiledObject
from latencyprobe_agent.kernel.hooks import Event, events_of
from latencyprobe_agent.kernel.load.loader import Loader
from latencyprobe_agent.kernel.load.maps import create_maps
from latencyprobe_agent.kernel.load.reach import Reach
from latencyprobe_agent.kernel.request import Request


@dataclass(slots=True)
class LoadedPrograms:
    """Programs that are attached, and the maps that the agent uses. The owner closes them.

    `attached`: event to the hook in use; `refused`: event to the kernel's answer. `messages`: the
    kernel's answers in full.
    """

    maps: dict[str, int]
    programs: dict[str, int]
    links: list[int]
    attached: Mapping[str, str]
    refused: Mapping[str, str]
    messages: tuple[str, ...] = ()

    def close(self) -> None:
        """Detach and free everything, links first. Idempotent."""
        descriptors = [*self.links, *self.programs.values(), *self.maps.values()]
        self.links, self.programs, self.maps = [], {}, {}
        for descriptor in descriptors:
            os.close(descriptor)


def load(compiled: CompiledObject, request: Request) -> LoadedPrograms:
    """Create the maps, load the programs and attach them.

    A hook that the kernel refuses is no error. Raises KernelRefusedError if a map is refused, or if
    there is no memory or no descriptor; then nothing is left.
    """
    modules = tuple(Module(name) for name in request.modules)
    places = {each.name: place for place, each in enumerate(compiled.maps)}
    used = {name: places[name] for name in map_names(modules, trace=request.trace)}
    maps = create_maps(compiled.maps)
    try:
        loader = _attached(compiled, request, maps)
    except BaseException:
        _close(maps)
        raise
    # Programs keep the maps that only they use.
    _close(descriptor for place, descriptor in enumerate(maps) if place not in used.values())
    return LoadedPrograms(
        {name: maps[place] for name, place in used.items()},
        loader.programs,
        loader.links,
        loader.attached,
        loader.refused,
        tuple(loader.messages),
    )


def lacks_alternatives(
    compiled: CompiledObject, request: Request, refused: Mapping[str, str]
) -> bool:
    """Return True if a refused event has alternatives that were not compiled."""
    events = _events_of(request)
    reach = Reach(compiled.types, request.without)
    lacking = [event for event in events if event.name in refused]
    return not reach.functions(lacking, first_only=False) <= compiled.wanted


def _attached(compiled: CompiledObject, request: Request, maps: list[int]) -> Loader:
    constants: dict[int, int] = {LoadConstant.HOST_NETNS: request.host_netns}
    code = {name: each.linked(maps, constants) for name, each in compiled.programs.items()}
    loader = Loader(code, compiled.types, without=request.without)
    try:
        for event in _events_of(request):
            loader.attach(event)
    except BaseException:
        loader.detach()
        raise
    return loader


def _events_of(request: Request) -> tuple[Event, ...]:
    return events_of((Module(name) for name in request.modules), udp=request.udp)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
