"""The translation unit bpf/latencyprobe.bpf.c, after the macros that select its parts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import MACROS, assertions
from latencyprobe_agent.kernel.sources import source_folder

UNIT = "latencyprobe.bpf.c"
INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
_PROGRAM = re.compile(r"^int (\w+)\((?:u64|struct \w+) \*\w+\)$", re.MULTILINE)
_FUNCTION = re.compile(
    r"^(?:static|int)\b[^;{}=]*?\b(\w+)\([^;{}]*\)\n\{\n(.*?)^\}", re.MULTILINE | re.DOTALL
)
_CALL = re.compile(r"\b(\w+)\(")
_UNROLLED = "#pragma unroll"
_ROUNDS = 4  # of most unrolled loops


def compose(
    modules: Iterable[Module],
    *,
    from_btf: bool,
    typed: bool,
    functions: Iterable[str] = (),
    trace: bool = False,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the C source of these modules.

    `from_btf`: types come from BTF, else from the kernel's headers (include/kernel.h).
    `typed`: programs are typed by BTF (include/common.h). `functions`: the selected programs among
    alternatives. `trace`: report single packets (include/trace.h). `facts`: numbers of the running
    kernel, by macro: of its drop reasons, and of the variables that programs read.
    """
    wanted = frozenset(modules)
    macros = {
        "FROM_BTF": int(from_btf),
        "TYPED": int(typed),
        "TRACE": int(trace),
        **MACROS,
        **{f"MODULE_{module.name}": 1 for module in wanted},
        **facts,
        **selections(functions),
    }
    unit = _with_includes(source_folder() / UNIT)
    return "\n".join([*definitions(macros), unit, *assertions(wanted, trace=trace)])


def selections(functions: Iterable[str]) -> Mapping[str, int]:
    """Return the macros that select these programs among alternatives."""
    return {f"WITH_{function.upper()}": 1 for function in sorted(functions)}


def definitions(macros: Mapping[str, int | str]) -> list[str]:
    """Return the lines that define these macros."""
    return [f"#define {name} {value}" for name, value in macros.items()]


def of_programs(source: str, functions: Collection[str]) -> str:
    """Return a source whose other programs are inline functions without a caller.

    The compiler parses those, and does nothing more with them.
    """

    def declared(program: re.Match[str]) -> str:
        return program[0] if program[1] in functions else f"static inline {program[0]}"

    return _PROGRAM.sub(declared, source)


def share_out(source: str, functions: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Share out these programs of a source to two processes that take about as long to compile."""
    lengths = _inlined_lengths(source)
    one: list[str] = []
    other: list[str] = []
    ahead = 0
    for function in sorted(functions, key=lambda each: (-lengths.get(each, 0), each)):
        is_for_one = (ahead, len(one) - len(other)) <= (0, 0)
        (one if is_for_one else other).append(function)
        ahead += lengths.get(function, 0) * (1 if is_for_one else -1)
    return tuple(one), tuple(other)


def _inlined_lengths(source: str) -> Mapping[str, int]:
    """Estimate the statements of each function, with those of all functions that it calls.

    All calls are inlined, and a function is defined before those that call it.
    """
    lengths: dict[str, int] = {}
    for name, body in _FUNCTION.findall(source):
        called = sum(lengths.get(each, 0) for each in _CALL.findall(body))
        rounds = _ROUNDS if _UNROLLED in body else 1
        lengths[name] = max(lengths.get(name, 0), rounds * (body.count(";") + called))
    return lengths


def _with_includes(path: Path) -> str:
    """Return a file with each `#include` of our own files replaced by the file.

    bcc rewrites map accesses in the main file alone.
    """
    return INCLUDE.sub(lambda found: _with_includes(path.parent / found[1]), path.read_text())
