"""The running kernel's own types, from its BTF.

BTF (BPF Type Format) is the kernel's compact debug information at /sys/kernel/btf/vmlinux. It
provides the C declarations that our programs are compiled with. It also provides the ids that bind
a program to a tracepoint with typed arguments ("tp_btf").
"""

from __future__ import annotations

import ctypes
import itertools
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latencyprobe_agent.kernel.libbpf import library

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_KIND_STRUCT = 4
_KIND_ENUM = 6
_KIND_TYPEDEF = 8
_KIND_FUNC = 12
_KIND_VAR = 14
_KIND_DATASEC = 15
_MODIFIERS = frozenset({_KIND_TYPEDEF, 9, 10})  # volatile, const
_TYPE_HEADER = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_ENUMERATOR = struct.Struct("=Ii")
_PLACE = struct.Struct("=III")
# struct btf_header, include/uapi/linux/btf.h
_BTF_HEADER = struct.Struct("=HBB5I")
_PER_CPU_SECTION = ".data..percpu"
_EMIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_LINE_BYTES = 1 << 16
_PADDING = re.compile(r"^(\t+)long: 64;\n(?:\t+long: 64;\n)*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PerCpuVariable:
    """A variable of each CPU: its place in the area of all variables, and its size, in bytes."""

    place: int
    size: int


class NoBtfError(RuntimeError):
    """A kernel without BTF, or with BTF that libbpf cannot read."""


class KernelTypes:
    """The types of the running kernel. Raises NoBtfError if they are not available."""

    def __init__(self) -> None:
        self._library = library()
        handle = self._library.btf__load_vmlinux_btf()
        # libbpf 1.x answers NULL, 0.x an error encoded in the pointer's top page
        if not handle or handle > 2**64 - 4096:
            raise NoBtfError(f"cannot read {VMLINUX}: it requires CONFIG_DEBUG_INFO_BTF=y")
        self._btf = ctypes.c_void_p(handle)

    def declarations(self, structs: Iterable[str]) -> str:
        """Return C declarations of these structs and of all that they hold by value, in order.

        Structs that this kernel does not have are omitted.
        """
        ids = [id_ for name in structs if (id_ := self._find(name, _KIND_STRUCT)) is not None]
        chunks: list[bytes] = []
        emit = _EMIT(_appender(chunks))
        dumper = self._library.btf_dump__new(self._btf, emit, None, None)
        if not dumper or dumper > 2**64 - 4096:
            raise NoBtfError("libbpf is too old to print this kernel's BTF; install a newer one")
        try:
            for id_ in ids:
                self._library.btf_dump__dump_type(ctypes.c_void_p(dumper), id_)
        finally:
            self._library.btf_dump__free(ctypes.c_void_p(dumper))
        return as_arrays(b"".join(chunks).decode())

    def has_field(self, struct_name: str, field: str) -> bool:
        """Return True if the struct has the field, directly or in an anonymous member."""
        id_ = self._find(struct_name, _KIND_STRUCT)
        return id_ is not None and self._find_member(id_, field) is not None

    def field_offset(self, struct_name: str, field: str) -> int | None:
        """Return the offset of a field in bytes, also of an anonymous member; or None."""
        id_ = self._find(struct_name, _KIND_STRUCT)
        found = None if id_ is None else self._find_member(id_, field)
        return None if found is None else found[0]

    def tracepoint_id(self, tracepoint: str) -> int | None:
        """Return the id that binds a program to a tracepoint's typed arguments, or None."""
        return self._find(f"btf_trace_{tracepoint}", _KIND_TYPEDEF)

    def function_id(self, function: str) -> int | None:
        """Return the id that binds a program to a function's arguments (fentry, fexit), or None.

        Only functions of vmlinux have one, those of kernel modules do not.
        """
        return self._find(function, _KIND_FUNC)

    def per_cpu_variable(self, name: str) -> PerCpuVariable | None:
        """Return the variable of this name, or its member (`structure.member`), or None."""
        variable, _, field = name.partition(".")
        id_ = self._find(variable, _KIND_VAR)
        place = self._per_cpu_places().get(id_ or 0)
        if id_ is None or place is None:
            return None
        type_id = self._unmodified(self._header(id_)[2])
        if field:
            member = self._find_member(type_id, field)
            if member is None:
                return None
            place, type_id = place + member[0], self._unmodified(member[1])
        return PerCpuVariable(place, self._header(type_id)[2])

    def argument_count(self, tracepoint: str) -> int:
        """Return the number of arguments of a tracepoint; 0 if this kernel does not have it."""
        id_ = self.tracepoint_id(tracepoint)
        if id_ is None:
            return 0
        _, _, pointer = self._header(id_)
        _, _, prototype = self._header(pointer)
        _, info, _ = self._header(prototype)
        return (info & 0xFFFF) - 1  # the first is the attachment's own data

    def enumerators(self, enum: str) -> dict[str, int]:
        """Return the names of an enum with their values; empty if there is no such enum."""
        id_ = self._find(enum, _KIND_ENUM)
        if id_ is None:
            return {}
        address = self._library.btf__type_by_id(self._btf, id_) + _TYPE_HEADER.size
        raw = ctypes.string_at(address, (self._header(id_)[1] & 0xFFFF) * _ENUMERATOR.size)
        return {self._name(name): value for name, value in _ENUMERATOR.iter_unpack(raw)}

    def unnamed_enumerator(self, name: str) -> int | None:
        """Return the value of an enumerator of an enum without a name, or None.

        No index has it. So its name's offset is searched for, between neighbours that count on.
        """
        return find_enumerator(VMLINUX.read_bytes(), name)

    def _find(self, name: str, kind: int) -> int | None:
        id_: int = self._library.btf__find_by_name_kind(self._btf, name.encode(), kind)
        return id_ if id_ > 0 else None

    def _find_member(self, type_id: int, field: str) -> tuple[int, int] | None:
        """Return a member's offset in bytes and its type; members without a name count as theirs.

        Bit-fields have the offset of their first byte.
        """
        for name, bits, member_type in self._members(type_id):
            if name == field:
                return bits // 8, member_type
            inner = self._find_member(member_type, field) if not name else None
            if inner is not None:
                return bits // 8 + inner[0], inner[1]
        return None

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        """Yield the name, the offset in bits and the type of each member of a struct or union."""
        address = self._library.btf__type_by_id(self._btf, type_id)
        _, info, _ = self._header(type_id)
        raw = ctypes.string_at(address + _TYPE_HEADER.size, (info & 0xFFFF) * _MEMBER.size)
        has_sizes = info >> 31  # then the upper byte of an offset is a bit-field's size
        for name_offset, member_type, offset in _MEMBER.iter_unpack(raw):
            name = self._name(name_offset) if name_offset else ""
            yield name, offset & 0xFFFFFF if has_sizes else offset, member_type

    def _per_cpu_places(self) -> dict[int, int]:
        """Return the places of the variables of each CPU by their ids."""
        section = self._find(_PER_CPU_SECTION, _KIND_DATASEC)
        if section is None:
            return {}
        address = self._library.btf__type_by_id(self._btf, section) + _TYPE_HEADER.size
        raw = ctypes.string_at(address, (self._header(section)[1] & 0xFFFF) * _PLACE.size)
        return {id_: place for id_, place, _ in _PLACE.iter_unpack(raw)}

    def _unmodified(self, type_id: int) -> int:
        """Return the type behind typedefs and qualifiers."""
        while True:
            _, info, behind = self._header(type_id)
            if info >> 24 & 0x1F not in _MODIFIERS:
                return type_id
            type_id = behind

    def _header(self, type_id: int) -> tuple[int, int, int]:
        """Return (name's offset, kind and number of members, size or type) of a type."""
        address = self._library.btf__type_by_id(self._btf, type_id)
        name, info, size_or_type = _TYPE_HEADER.unpack(ctypes.string_at(address, _TYPE_HEADER.size))
        return name, info, size_or_type

    def _name(self, offset: int) -> str:
        address = self._library.btf__name_by_offset(self._btf, offset)
        return (ctypes.string_at(address) if address else b"").decode()


def find_enumerator(btf: bytes, name: str) -> int | None:
    """Return the value of an enumerator whose neighbours have the numbers before and after it."""
    *_, header, types_at, types_size, names_at, _ = _BTF_HEADER.unpack_from(btf)
    types = btf[header + types_at : header + types_at + types_size]
    found = btf.find(b"\0" + name.encode() + b"\0", header + names_at)
    if found < 0:
        return None
    key = (found + 1 - header - names_at).to_bytes(4, sys.byteorder)
    at = types.find(key)
    while at >= 0:
        if at % 4 == 0 and _ENUMERATOR.size <= at <= len(types) - 2 * _ENUMERATOR.size:
            window = types[at - _ENUMERATOR.size : at + 2 * _ENUMERATOR.size]
            before, value, after = (int(number) for _, number in _ENUMERATOR.iter_unpack(window))
            if before + 1 == value == after - 1:
                return value
        at = types.find(key, at + 1)
    return None


def as_arrays(declarations: str) -> str:
    """Replace unnamed bit-fields of 64 bits (`long: 64;`), as libbpf prints padding, by members.

    LLVM 14 makes one 128-bit field of two of them, and counts them twice if the next member is
    aligned. Loads of all later members were 16 bytes too far (struct task_struct of 7.2).
    """
    numbers = itertools.count()

    def replace(padding: re.Match[str]) -> str:
        count = padding[0].count("long: 64;")
        return f"{padding[1]}long __padding_{next(numbers)}[{count}];\n"

    return _PADDING.sub(replace, declarations)


def _appender(chunks: list[bytes]) -> Callable[[int, bytes, int], None]:
    """Return a printf-like sink for libbpf, which formats into `chunks` by libc's vsnprintf."""
    vsnprintf = ctypes.CDLL(None).vsnprintf
    line = ctypes.create_string_buffer(_LINE_BYTES)

    def append(_context: int, template: bytes, arguments: int) -> None:
        # A va_list is passed as a pointer on x86-64 (an array type) and on arm64 (over 16 bytes).
        vsnprintf(line, len(line), template, ctypes.c_void_p(arguments))
        chunks.append(line.value)

    return append
