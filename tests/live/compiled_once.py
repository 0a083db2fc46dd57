"""Compiling once what is loaded many times.

Objects of one source have their maps in common: only one of them may be loaded at a time.
"""

from __future__ import annotations

import os
import warnings
from functools import cache

import pytest

from latencyprobe_agent.kernel import compiler
from latencyprobe_agent.kernel.loaded import LoadedObject


class CompiledOnce:
    """Builds objects in this process: of code that is there already, loaded and attached anew."""

    def __init__(self) -> None:
        self._compile = compiler._compile
        self._compiled: dict[str, compiler._Object] = {}

    async def build(self, request: compiler.Request) -> LoadedObject:
        """As `loaded.build` does."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compiler, "_compile", self._compile_once)
            answer, descriptors = compiler.build(request)
        maps = len(answer.maps)
        own = [*(os.dup(descriptor) for descriptor in descriptors[:maps]), *descriptors[maps:]]
        return LoadedObject(answer, own, "")

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
