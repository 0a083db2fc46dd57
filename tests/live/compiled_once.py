"""Compiling once what is loaded many times.

Objects of one source have their maps in common: only one of them may be loaded at a time.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from itertools import count

import pytest

from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject

# More than any object needs, and few enough for 24 bits.
_GENERATIONS_EACH = 10_000


class CompiledOnce:
    """Builds objects in this process: of code that is there already, loaded and attached anew.

    Each begins with generations of its own: what its maps know from objects before it is out of
    date.
    """

    def __init__(self) -> None:
        self._compile = compiler._compile
        self._compiled: dict[str, compiler._Object] = {}
        self._generations = count(0, _GENERATIONS_EACH)

    async def build(self, request: Request) -> LoadedObject:
        """As `loaded.build` does."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compiler, "_compile", self._compile_once)
            answer, descriptors = compiler.build(request)
        maps = len(answer.maps)
        own = [*(os.dup(descriptor) for descriptor in descriptors[:maps]), *descriptors[maps:]]
        built = LoadedObject(Handover(answer, own, ""))
        built._generation = next(self._generations)
        return built

    def _compile_once(
        self, source: str, functions: list[str], maps: tuple[str, ...]
    ) -> compiler._Object:
        if source not in self._compiled:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # bcc prefers bytes for its texts
                self._compiled[source] = self._compile(source, functions, maps)
        return self._compiled[source]


@cache
def compiled_once() -> CompiledOnce:
    """The one of this process."""
    return CompiledOnce()
