"""The encoding of compiled objects: data only, for a file or another process.

The content is compressed. Unpacked it is a table in JSON, with its length before it, and behind it
the instructions of all programs, one after another.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from latencyprobe_agent.kernel.compiled import (
    INSTRUCTION,
    CompiledObject,
    MapDefinition,
    Program,
    Reference,
    TypeNumbers,
)

FORMAT = 2
"""The version of the encoding. Change it with each change of the encoding or of its meaning."""

_TYPE_TABLES = ("tracepoints", "functions", "variables")
_LENGTH = struct.Struct("<I")
# Some ten times as much as all modules have.
_MOST_BYTES = 16 << 20


class CorruptObjectError(ValueError):
    """Bytes that are no compiled object of this version."""


def encode(compiled: CompiledObject) -> bytes:
    """Return the object as bytes."""
    table = {
        "programs": [
            [name, len(program.code), program.maps, program.constants]
            for name, program in compiled.programs.items()
        ],
        "maps": [
            [each.name, each.type, each.key_bytes, each.value_bytes, each.max_entries, each.flags]
            for each in compiled.maps
        ],
        "wanted": sorted(compiled.wanted),
        "types": _types_as_table(compiled.types),
        "drop_reasons": compiled.drop_reasons,
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    code = b"".join(program.code for program in compiled.programs.values())
    return zlib.compress(_LENGTH.pack(len(text)) + text + code)


def decode(content: bytes) -> CompiledObject:
    """Return the object. Raises CorruptObjectError."""
    try:
        return _decode(_unpacked(content))
    except (zlib.error, struct.error, LookupError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"not a compiled object: {error}") from error


def _unpacked(content: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    whole = unpacker.decompress(content, _MOST_BYTES)
    if not unpacker.eof:
        raise CorruptObjectError(f"it is incomplete, or larger than {_MOST_BYTES} bytes")
    return whole


def _decode(whole: bytes) -> CompiledObject:
    (length,) = _LENGTH.unpack_from(whole)
    begin = _LENGTH.size + length
    table = json.loads(whole[_LENGTH.size : begin])
    maps = tuple(MapDefinition(*each) for each in table["maps"])
    return CompiledObject(
        dict(_programs(table["programs"], whole[begin:], len(maps))),
        maps,
        frozenset(table["wanted"]),
        _types_of_table(table["types"]),
        tuple(table["drop_reasons"]),
    )


def _programs(rows: list[Any], code: bytes, maps: int) -> Iterator[tuple[str, Program]]:
    begin = 0
    for name, length, map_rows, constant_rows in rows:
        end = begin + length
        if not begin <= end <= len(code):
            raise CorruptObjectError(f"{name} has no end")
        program = Program(code[begin:end], _references(map_rows), _references(constant_rows))
        if not all(0 <= number < maps for _, number in program.maps):
            raise CorruptObjectError(f"{name} refers to a map that does not exist")
        most = length - 2 * INSTRUCTION.size
        if not all(0 <= offset <= most for offset, _ in program.references):
            raise CorruptObjectError(f"{name} has a reference outside of it")
        yield name, program
        begin = end


def _references(rows: list[Any]) -> tuple[Reference, ...]:
    return tuple((int(offset), int(number)) for offset, number in rows)


def _types_as_table(types: TypeNumbers | None) -> Mapping[str, Mapping[str, Any]] | None:
    return None if types is None else {name: getattr(types, name) for name in _TYPE_TABLES}


def _types_of_table(table: Mapping[str, Any] | None) -> TypeNumbers | None:
    return None if table is None else TypeNumbers(*(table[name] for name in _TYPE_TABLES))
