"""Compiling once what is loaded many times, in this process or by an earlier run."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.handover import Handover, request_object
from latencyprobe_agent.kernel.load.object_file import encode
from latencyprobe_agent.kernel.load.provision import Compile, Prepared, provide
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject
from tests.live.kept_objects import KeptObjects
from tools.cache import cache_directory


class CompiledOnce:
    """Builds objects of code that is there already, loaded and attached anew.

    `compile_`: where the code is not there. `kept`: the objects of earlier runs.
    """

    def __init__(self, compile_: Compile | None = None, kept: KeptObjects | None = None) -> None:
        self.compile_ = compile_ or compile_here
        self._compiled: dict[Request, bytes] = {}
        self._kept = kept

    async def build(
        self,
        request: Request,
        cache: ObjectCache | None = None,
        prepared: Prepared | None = None,
    ) -> LoadedObject:
        """As `loaded.build` does, with a cache of its own."""
        return LoadedObject(request, await provide(request, self.compile, None))

    def keep(self, request: Request, content: bytes) -> None:
        """Have these programs, which another process has compiled."""
        self._compiled[_wanted(request)] = content

    async def compile(self, request: Request) -> Handover:
        """As the compiler process does, if no one did before."""
        wanted = _wanted(request)
        if wanted not in self._compiled:
            self._compiled[wanted] = self._read(wanted) or await self._compile(wanted)
        return Handover(self._compiled[wanted], "")

    def _read(self, request: Request) -> bytes | None:
        return self._kept.read(request) if self._kept is not None else None

    async def _compile(self, request: Request) -> bytes:
        content = (await self.compile_(request)).content
        if self._kept is not None:
            self._kept.write(request, content)
        return content


async def compile_here(request: Request) -> Handover:
    """Compile in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bcc prefers bytes for its texts
        return Handover(encode(compiler.build(request)), "")


def _wanted(request: Request) -> Request:
    return replace(request, host_netns=0)  # which matters for loading only


@cache
def compiled_once() -> CompiledOnce:
    """The one of this process; another process compiles, on two CPUs."""
    return CompiledOnce(request_object, KeptObjects(cache_directory() / "objects"))
