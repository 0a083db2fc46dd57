"""C declarations from BTF, as far as they are text."""

from __future__ import annotations

import struct

from latencyprobe_agent.kernel.btf import as_arrays, find_enumerator


def test_integers_of_padding_are_members_and_parts_of_integers_stay_bit_fields() -> None:
    printed = (
        "struct s {\n\tint a: 3;\n\tlong: 28;\n\tlong: 64;\n\tlong: 64;\n\tint b;\n"
        "\tlong: 64;\n};\n"
    )
    assert as_arrays(printed) == (
        "struct s {\n\tint a: 3;\n\tlong: 28;\n\tlong __padding_0[2];\n\tint b;\n"
        "\tlong __padding_1[1];\n};\n"
    )


def btf(names: bytes, *words: int) -> bytes:
    """A blob with these names, and these words as its types."""
    types = struct.pack(f"={len(words)}I", *words)
    header = struct.pack("=HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


def test_an_enumerator_is_found_between_neighbours_that_count_on() -> None:
    names = b"\0first\0second\0third\0"
    one, two, three = (names.index(name) for name in (b"first", b"second", b"third"))
    enumerators = (one, 22, two, 23, three, 24)
    assert find_enumerator(btf(names, two, 5, *enumerators, 0, 0), "second") == 23


def test_a_number_that_merely_resembles_its_name_is_none() -> None:
    names = b"\0first\0second\0"
    two = names.index(b"second")
    assert find_enumerator(btf(names, 1, 2, two, 7, 3, 4), "second") is None
    assert find_enumerator(btf(names, 1, 2, two, 7, 3, 4), "other") is None
