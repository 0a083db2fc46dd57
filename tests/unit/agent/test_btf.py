"""C declarations from BTF, as far as they are text."""

from __future__ import annotations

from latencyprobe_agent.kernel.btf import as_arrays


def test_words_of_padding_are_members_and_parts_of_words_stay_bit_fields() -> None:
    printed = (
        "struct s {\n\tint a: 3;\n\tlong: 28;\n\tlong: 64;\n\tlong: 64;\n\tint b;\n"
        "\tlong: 64;\n};\n"
    )
    assert as_arrays(printed) == (
        "struct s {\n\tint a: 3;\n\tlong: 28;\n\tlong __padding_0[2];\n\tint b;\n"
        "\tlong __padding_1[1];\n};\n"
    )
