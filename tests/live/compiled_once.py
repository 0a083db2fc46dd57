"""Compiling once what is loaded many times.

Objects of one source have their maps in common, so only one of them is loaded at a time: for a
second one the source is compiled again.
"""

from __future__ import annotations

import ctypes
import os
import struct
import warnings
from collections import OrderedDict
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from latencyprobe_agent.kernel import libbpf
from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.request import Request
from latencyprobe_agent.kernel.runtime.loaded import LoadedObject

# More than any object needs, and few enough for 24 bits.
_GENERATIONS_EACH = 10_000
# Each keeps some 20 MB of LLVM's and of maps.
_KEPT_SOURCES = 8
# enum bpf_map_type, include/uapi/linux/bpf.h
_ARRAY, _PERCPU_ARRAY = 2, 6
_HASHES = frozenset({1, 5, 9, 10})  # per CPU, and those that drop the least recently used


class CompiledOnce:
    """Builds objects in this process: of code that is there already, loaded and attached anew.

    Each begins with empty maps, and with generations of its own: what sockets know from objects
    before it is out of date.
    """

    def __init__(self) -> None:
        self._compile = compiler._compile
        self._compiled: OrderedDict[str, compiler._Object] = OrderedDict()
        self._loaded: dict[str, LoadedObject] = {}
        self._generations = count(0, _GENERATIONS_EACH)

    async def build(self, request: Request) -> LoadedObject:
        """As `loaded.build` does."""
        sources: list[str] = []

        def compile_once(
            source: str, functions: list[str], maps: tuple[str, ...]
        ) -> compiler._Object:
            sources.append(source)
            return self._compile_once(source, functions, maps)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compiler, "_compile", compile_once)
            answer, descriptors = compiler.build(request)
        maps = len(answer.maps)
        own = [*(os.dup(descriptor) for descriptor in descriptors[:maps]), *descriptors[maps:]]
        built = LoadedObject(Handover(answer, own, ""))
        built._generation = next(self._generations)
        self._loaded[sources[-1]] = built
        return built

    def _compile_once(
        self, source: str, functions: list[str], maps: tuple[str, ...]
    ) -> compiler._Object:
        if self._is_loaded(source):
            self._compiled.pop(source, None)
        if source in self._compiled:
            clear_maps(self._compiled[source].owner.module)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # bcc prefers bytes for its texts
                self._compiled[source] = self._compile(source, functions, maps)
        self._compiled.move_to_end(source)
        while len(self._compiled) > _KEPT_SOURCES:
            self._compiled.popitem(last=False)
        return self._compiled[source]

    def _is_loaded(self, source: str) -> bool:
        return source in self._loaded and bool(self._loaded[source]._handover.descriptors)


def clear_maps(module: Any) -> None:
    """Make all maps of bcc's module as they were when they were new; no program uses them now.

    Storage of sockets went with the sockets, and the ring buffer has its place in itself.
    """
    from bcc.libbcc import lib  # noqa: PLC0415 - LLVM, for tests that compile alone

    # bcc declares no types of these arguments: a plain number would lose its upper half.
    pointer = ctypes.c_void_p(module)
    for number in range(lib.bpf_num_tables(pointer)):
        clear(lib.bpf_table_fd_id(pointer, ctypes.c_size_t(number)))


def clear(map_fd: int) -> None:
    """Delete or zero all entries of a map."""
    lines = Path(f"/proc/self/fdinfo/{map_fd}").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    kind, key_bytes, value_bytes, entries = (
        int(fields[name]) for name in ("map_type", "key_size", "value_size", "max_entries")
    )
    if kind in _HASHES:
        for key in libbpf.keys(map_fd, key_bytes):
            libbpf.delete(map_fd, key)
    elif kind in (_ARRAY, _PERCPU_ARRAY):
        padded = -(-value_bytes // 8) * 8
        nothing = bytes(value_bytes if kind == _ARRAY else padded * _possible_cpus())
        for index in range(entries):
            libbpf.update(map_fd, struct.pack("=I", index), nothing)


def _possible_cpus() -> int:
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    return 1 + max(int(each.rpartition("-")[2]) for each in ranges)


@cache
def compiled_once() -> CompiledOnce:
    """The one of this process."""
    return CompiledOnce()
