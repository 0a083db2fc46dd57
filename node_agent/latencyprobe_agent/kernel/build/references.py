"""Instructions as bcc compiles them, with symbols in place of the descriptors of bcc's maps.

bcc creates the maps while it compiles, and writes their descriptors into the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latencyprobe_agent.kernel.abi import ADDRESSED_MAPS, CONSTANT_REGISTER, MAP_REGISTER
from latencyprobe_agent.kernel.compiled import (
    INSTRUCTION,
    LOAD_IMMEDIATE,
    PSEUDO_MAP,
    Program,
    Reference,
    source_of,
    with_source,
)


class UnknownReferenceError(RuntimeError):
    """An instruction that refers to something that a compiled object cannot express."""

    def __init__(self, function: str, offset: int, what: str) -> None:
        super().__init__(
            f"cannot compile {function}: the instruction at {offset} refers to {what}; it may "
            "refer to maps of the same source and to constants of kernel/abi.py"
        )


def symbolic(
    function: str,
    code: bytes,
    maps: Mapping[int, int],
    addressed: Mapping[str, int] = MappingProxyType({}),
) -> Program:
    """Return a function's instructions with symbolic references.

    `maps`: descriptor of bcc's map to the map's place in the object. `addressed`: the places of
    those in `abi.ADDRESSED_MAPS`, by name.
    """
    cleared = bytearray(code)
    map_references: list[Reference] = []
    constants: list[Reference] = []
    offset = 0
    while offset < len(code):
        opcode, registers, _, immediate = INSTRUCTION.unpack_from(code, offset)
        if opcode != LOAD_IMMEDIATE:
            offset += INSTRUCTION.size
            continue
        source = source_of(registers)
        if source == PSEUDO_MAP:
            if immediate not in maps:
                raise UnknownReferenceError(function, offset, f"descriptor {immediate}")
            map_references.append((offset, maps[immediate]))
        elif source == MAP_REGISTER:
            map_references.append((offset, addressed[ADDRESSED_MAPS[immediate]]))
            registers = with_source(registers, PSEUDO_MAP)
        elif source == CONSTANT_REGISTER:
            constants.append((offset, immediate))
        elif source:
            raise UnknownReferenceError(function, offset, f"an object of kind {source}")
        if source:
            # Equal sources give equal objects, whatever descriptors there were.
            INSTRUCTION.pack_into(cleared, offset, opcode, registers, 0, 0)
        offset += 2 * INSTRUCTION.size
    return Program(bytes(cleared), tuple(map_references), tuple(constants))
