"""A compiled object: the eBPF programs and maps of one source, before the kernel has any of them.

It holds no descriptor, so it can be kept and loaded many times. Instructions refer to maps, and to
constants that are known only at loading, by number: `Program.linked` replaces the numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# struct bpf_insn, include/uapi/linux/bpf.h: code, registers (source in the high half), offset,
# immediate. BPF_LD | BPF_IMM | BPF_DW takes two of them, and each has half of the 64 bits.
INSTRUCTION = struct.Struct("<BBhi")
LOAD_IMMEDIATE = 0x18
PSEUDO_MAP = 1  # BPF_PSEUDO_MAP_FD
_SOURCE_SHIFT = 4
_DESTINATION_MASK = (1 << _SOURCE_SHIFT) - 1
_IMMEDIATE = struct.Struct("<I")
_IMMEDIATE_OFFSET = 4

Reference = tuple[int, int]
"""The offset in bytes of an instruction that loads 64 bits, and the number that it refers to."""


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map to create. `type` and `flags` are the kernel's: enum bpf_map_type, BPF_F_."""

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """The instructions of one function.

    `maps`: references to maps, by their place in the object. `constants`: references to the
    constants of `abi.LoadConstant`.
    """

    code: bytes
    maps: tuple[Reference, ...] = ()
    constants: tuple[Reference, ...] = ()

    @property
    def references(self) -> tuple[Reference, ...]:
        """All references."""
        return (*self.maps, *self.constants)

    def linked(self, maps: Sequence[int], constants: Mapping[int, int]) -> bytes:
        """Return the instructions with these maps' descriptors and these values of constants."""
        code = bytearray(self.code)
        for offset, number in self.maps:
            _IMMEDIATE.pack_into(code, offset + _IMMEDIATE_OFFSET, maps[number])
        for offset, number in self.constants:
            code[offset + 1] = with_source(code[offset + 1], 0)
            _IMMEDIATE.pack_into(code, offset + _IMMEDIATE_OFFSET, constants[number])
        return bytes(code)


def source_of(registers: int) -> int:
    """Return the source register of an instruction's two registers."""
    return registers >> _SOURCE_SHIFT


def with_source(registers: int, source: int) -> int:
    """Return an instruction's two registers with another source register."""
    return registers & _DESTINATION_MASK | source << _SOURCE_SHIFT


@dataclass(frozen=True, slots=True)
class TypeNumbers:
    """The BTF ids of the tracepoints and functions that programs are bound to, by name.

    `variables`: those of each CPU that programs were to read, with the reason why they cannot; None
    if they can. Counts of a namespace are among them. All of it holds for one build of the kernel.
    """

    tracepoints: Mapping[str, int] = field(default_factory=dict)
    functions: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str | None] = field(default_factory=dict)

    def tracepoint_id(self, tracepoint: str) -> int | None:
        """Return the id of a tracepoint; None if the kernel does not have it."""
        return self.tracepoints.get(tracepoint)

    def function_id(self, function: str) -> int | None:
        """Return the id of a function; None if the kernel does not have it."""
        return self.functions.get(function)

    def variable_fault(self, variable: str) -> str | None:
        """Return the reason why programs cannot read a variable; None if they can."""
        return self.variables.get(variable, "programs were compiled without this variable")


@dataclass(frozen=True, slots=True)
class CompiledObject:
    """Everything that loading needs.

    `wanted`: the functions that were selected for compiling; `programs` lacks those that are not
    for this kernel. `types`: for programs typed by BTF; None for others. `drop_reasons`: the names
    of the kernel's drop reasons, by their numbers.
    """

    programs: Mapping[str, Program]
    maps: tuple[MapDefinition, ...]
    wanted: frozenset[str]
    types: TypeNumbers | None
    drop_reasons: tuple[str, ...] = ()
