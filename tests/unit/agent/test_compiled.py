"""Instructions without descriptors: references to maps and constants, in memory and encoded."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_agent.kernel.abi import (
    ADDRESSED_MAPS,
    CONSTANT_REGISTER,
    MAP_REGISTER,
    LoadConstant,
)
from latencyprobe_agent.kernel.build.references import UnknownReferenceError, symbolic
from latencyprobe_agent.kernel.compiled import (
    CompiledObject,
    MapDefinition,
    Program,
    Reference,
    TypeNumbers,
)
from latencyprobe_agent.kernel.load.maps import storage_types
from latencyprobe_agent.kernel.load.object_file import CorruptObjectError, decode, encode

EXIT = bytes.fromhex("9500000000000000")
LOAD_64, MAP = 0x18, 1


def load_64(source: int, immediate: int, *, upper: int = 0, register: int = 3) -> bytes:
    """The instruction that loads 64 bits."""
    return struct.pack("<BBhiBBhi", LOAD_64, source << 4 | register, 0, immediate, 0, 0, 0, upper)


def test_descriptors_become_places_and_places_become_other_descriptors() -> None:
    code = load_64(MAP, 17) + EXIT + load_64(MAP, 5) + load_64(MAP, 17, register=9)
    program = symbolic("on_x", code, {17: 0, 5: 1})
    assert program.maps == ((0, 0), (24, 1), (40, 0))
    assert struct.pack("<i", 17) not in program.code
    expected = load_64(MAP, 70) + EXIT + load_64(MAP, 71) + load_64(MAP, 70, register=9)
    assert program.linked([70, 71], {}) == expected


def test_a_constant_is_put_in_as_a_plain_number_of_32_bits() -> None:
    inode = 4026531840  # has the highest bit set, as those of a node's own namespaces
    program = symbolic("on_x", load_64(CONSTANT_REGISTER, LoadConstant.HOST_NETNS) + EXIT, {})
    assert program.constants == ((0, LoadConstant.HOST_NETNS),)
    linked = program.linked([], {LoadConstant.HOST_NETNS: inode})
    assert linked == load_64(0, struct.unpack("<i", struct.pack("<I", inode))[0]) + EXIT


@pytest.mark.parametrize("number", range(len(ADDRESSED_MAPS)))
def test_the_address_of_a_map_is_a_reference_to_it(number: int) -> None:
    code = load_64(MAP_REGISTER, number) + EXIT + load_64(MAP, 17)
    program = symbolic("on_x", code, {17: 0, 5: 1}, {ADDRESSED_MAPS[number]: 1})
    assert program.maps == ((0, 1), (24, 0))
    assert program.linked([70, 71], {}) == load_64(MAP, 71) + EXIT + load_64(MAP, 70)


def test_numbers_that_resemble_an_instruction_are_left_alone() -> None:
    upper = int.from_bytes(bytes([LOAD_64, MAP << 4, 0, 0]), "little")
    code = load_64(0, 17, upper=upper) + EXIT
    assert symbolic("on_x", code, {17: 0}) == Program(code)


@pytest.mark.parametrize(
    ("code", "what"), [(load_64(MAP, 99), "descriptor 99"), (load_64(2, 17), "object of kind 2")]
)
def test_a_reference_to_anything_else_is_an_error(code: bytes, what: str) -> None:
    with pytest.raises(UnknownReferenceError, match=f"cannot compile on_x: .*{what}"):
        symbolic("on_x", code, {17: 0})


# Encoded

_NUMBERS = st.integers(0, 2**32 - 1)
_NAMES = st.text("abcdefgh_", min_size=1, max_size=30)
_MAPS = st.builds(MapDefinition, _NAMES, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)


@st.composite
def programs(draw: st.DrawFn, maps: int) -> Program:
    instructions = draw(st.integers(2, 20))
    offsets = st.integers(0, instructions - 2).map(lambda place: 8 * place)

    def references(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Sequence[Reference]]:
        return st.lists(st.tuples(offsets, numbers), max_size=4)

    return Program(
        draw(st.binary(min_size=8 * instructions, max_size=8 * instructions)),
        tuple(draw(references(st.integers(0, maps - 1)))) if maps else (),
        tuple(draw(references(_NUMBERS))),
    )


@st.composite
def objects(draw: st.DrawFn) -> CompiledObject:
    maps = tuple(draw(st.lists(_MAPS, max_size=4)))
    table = st.dictionaries(_NAMES, _NUMBERS, max_size=4)
    variables = st.dictionaries(_NAMES, st.none() | st.text(), max_size=4)
    return CompiledObject(
        draw(st.dictionaries(_NAMES, programs(len(maps)), max_size=4)),
        maps,
        frozenset(draw(st.sets(_NAMES, max_size=4))),
        draw(st.none() | st.builds(TypeNumbers, table, table, variables)),
        tuple(draw(st.lists(_NAMES, max_size=4))),
    )


@given(objects())
def test_an_encoded_object_is_decoded_as_it_was(compiled: CompiledObject) -> None:
    assert decode(encode(compiled)) == compiled


ONE = CompiledObject(
    {"on_x": Program(load_64(MAP, 0) + EXIT, ((0, 0),))},
    (MapDefinition("stats", 2, 4, 8, 1, 0),),
    frozenset({"on_x"}),
    TypeNumbers({"x": 7}, variables={"y": None}),
)


@given(st.data())
def test_a_changed_or_cut_encoding_is_corrupt_or_another_object_but_no_other_error(
    data: st.DataObject,
) -> None:
    content = bytearray(encode(ONE))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(CorruptObjectError):
        decode(bytes(content))


def encoded(table: object, code: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return zlib.compress(struct.pack("<I", len(text)) + text + code)


@pytest.mark.parametrize(
    "rows",
    [
        [["on_x", 24, [[0, 1]], []]],  # one map exists
        [["on_x", 24, [[24, 0]], []]],  # behind the end
        [["on_x", 24, [[20, 0]], []]],
        [["on_x", 24, [[-8, 0]], []]],
        [["on_x", 24, [[0, -1]], []]],
        [["on_x", 32, [], []]],
        [["on_x", -8, [], []]],
        [["on_x", 24]],
        None,
    ],
)
def test_a_table_that_contradicts_itself_is_corrupt(rows: object) -> None:
    table = {
        "programs": rows,
        "maps": [["stats", 2, 4, 8, 1, 0]],
        "wanted": [],
        "types": None,
        "drop_reasons": [],
    }
    with pytest.raises(CorruptObjectError):
        decode(encoded(table, load_64(MAP, 0) + EXIT))


def test_types_that_say_nothing_of_variables_are_corrupt() -> None:
    table = {
        "programs": [],
        "maps": [],
        "wanted": [],
        "types": {"tracepoints": {}, "functions": {}},
        "drop_reasons": [],
    }
    with pytest.raises(CorruptObjectError, match="variables"):
        decode(encoded(table))


def test_a_variable_that_was_not_looked_up_is_not_readable() -> None:
    types = TypeNumbers(variables={"there": None, "hidden": "no such variable"})
    assert types.variable_fault("there") is None
    assert types.variable_fault("hidden") == "no such variable"
    assert types.variable_fault("other") == "programs were compiled without this variable"


def test_an_encoding_that_unpacks_to_too_much_is_corrupt() -> None:
    with pytest.raises(CorruptObjectError, match="larger than"):
        decode(zlib.compress(bytes(32 << 20)))


def test_the_storage_of_sockets_gets_types_of_a_key_and_of_a_value_of_its_size() -> None:
    blob = storage_types(1234)
    *_, header_bytes, type_offset, type_bytes, string_offset, string_bytes = struct.unpack_from(
        "=HBBIIIII", blob
    )
    assert (type_offset, string_offset) == (0, type_bytes)
    assert len(blob) == header_bytes + type_bytes + string_bytes
    integer, structure = blob[24:40], blob[40:52]
    assert struct.unpack("=IIII", integer)[1:] == (1 << 24, 4, 1 << 24 | 32)
    assert struct.unpack("=III", structure)[1:] == (4 << 24, 1234)
