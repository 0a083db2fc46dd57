"""What C and Python share stands in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.abi import MACROS, Layout, assertions
from latencyprobe_agent.kernel.sources import source_folder

INNER = Layout("inner", number="I", text="4s")
OUTER = Layout("outer", first="Q", inner=INNER, rest="3H", pad="H")


def c_sources() -> list[Path]:
    return [path for path in source_folder().rglob("*.[ch]") if path.is_file()]


def test_a_member_begins_where_those_before_it_end() -> None:
    assert OUTER.size == 24
    assert [OUTER.offset(name) for name in ("first", "inner", "rest", "pad")] == [0, 8, 16, 22]


def test_a_part_of_a_layout_unpacks_with_the_members_of_an_inner_struct() -> None:
    content = OUTER.packing.pack(1, 2, b"text", 3, 4, 5, 0)
    assert OUTER.part("first", "inner").unpack_from(content) == (1, 2, b"text")
    assert OUTER.part("rest").unpack_from(content, OUTER.offset("rest")) == (3, 4, 5)


def test_a_layout_asserts_its_size_and_each_members_place() -> None:
    size, number, text = INNER.assertions()
    assert "sizeof(struct inner) == 8," in size
    assert (
        "offsetof(struct inner, number) == 0 && sizeof(((struct inner *)0)->number) == 4," in number
    )
    assert "offsetof(struct inner, text) == 4 && sizeof(((struct inner *)0)->text) == 4," in text
    assert '"struct inner: text is not the 4 bytes at 4: kernel/abi.py");' in text


def test_only_what_is_compiled_is_asserted() -> None:
    without = "\n".join(assertions((), trace=False))
    assert "struct slot_stats" in without
    assert "node_stats" not in without
    assert "struct trace_event" not in without
    assert "enum extreme" in without
    assert not {"enum role", "enum resolution"} & set(re.findall(r"enum \w+", without))
    assert "ROLE_SERVER == 2" in "\n".join(assertions((Module.TCP,), trace=False))
    assert "node_stats" in "\n".join(assertions((Module.IRQ,), trace=False))
    assert "struct trace_event" in "\n".join(assertions((), trace=True))


def test_c_does_not_define_what_it_gets_from_python() -> None:
    defined = {
        name
        for path in c_sources()
        for name in re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)", path.read_text(), re.MULTILINE)
    }
    assert not defined & MACROS.keys()


@pytest.mark.parametrize("macro", [name for name in MACROS if not name.startswith("STAGE_")])
def test_c_uses_every_constant_that_it_gets(macro: str) -> None:
    """But for some stages: a stage is measured by several programs, or in the agent alone."""
    assert any(re.search(rf"\b{macro}\b", path.read_text()) for path in c_sources())
