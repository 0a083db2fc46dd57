"""Compiling once what is loaded many times, in this process."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.load.cache import ObjectCache
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.load.object_file import encode
from latencyprobe_agent.kernel.load.provision import Prepared, provide
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject


class CompiledOnce:
    """Builds objects of code that is there already, loaded and attached anew."""

    def __init__(self) -> None:
        self._compiled: dict[Request, bytes] = {}

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
        """As the compiler process does, in this one."""
        wanted = _wanted(request)
        if wanted not in self._compiled:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # bcc prefers bytes for its texts
                self._compiled[wanted] = encode(compiler.build(request))
        return Handover(self._compiled[wanted], "")


def _wanted(request: Request) -> Request:
    return replace(request, host_netns=0)  # which matters for loading only


@cache
def compiled_once() -> CompiledOnce:
    """The one of this process."""
    return CompiledOnce()
