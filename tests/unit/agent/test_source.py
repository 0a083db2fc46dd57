"""The translation unit is one file that includes the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.build import source
from latencyprobe_agent.kernel.build.source import compose, of_programs, share_out
from latencyprobe_agent.kernel.sources import source_folder


def composed() -> str:
    return compose((Module.TCP,), from_btf=True, typed=True)


def test_every_c_file_is_in_the_unit_once() -> None:
    unit = composed()
    files = [path for path in source_folder().rglob("*.[ch]") if path.name != "latencyprobe.bpf.c"]
    assert len(files) > 20
    for path in files:
        begin = path.read_text().split("*/", 1)[1]
        assert unit.count(begin) == 1, path


def test_no_file_is_left_to_be_included_since_bcc_would_not_rewrite_it() -> None:
    assert '#include "' not in composed()


def test_constants_come_before_the_unit_and_assertions_after_it() -> None:
    unit = composed()
    first, last = unit.index("struct config {"), unit.rindex("int on_")
    assert unit.index("#define MAX_SLOTS ") < first
    assert unit.index('kernel/abi.py");') > last


def test_an_included_file_may_include_others_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "latencyprobe.bpf.c").write_text('before\n#include "inner/one.h"\nafter\n')
    (tmp_path / "inner" / "one.h").write_text('#include "two.h"\n#include <linux/types.h>\n')
    (tmp_path / "inner" / "two.h").write_text("two\n")
    monkeypatch.setattr(source, "source_folder", lambda: tmp_path)
    assert "before\ntwo\n\n#include <linux/types.h>\n\nafter\n" in composed()


def test_other_programs_become_functions_without_a_caller() -> None:
    unit = composed()
    selected = of_programs(unit, {"on_tcp_probe", "on_sock_ops"})
    assert "\nint on_tcp_probe(u64 *ctx)\n" in selected
    assert "\nint on_sock_ops(struct bpf_sock_ops *ops)\n" in selected
    others = unit.count("\nint on_") - 2
    assert others > 10
    assert selected.count("\nstatic inline int on_") == others
    assert selected.replace("\nstatic inline int on_", "\nint on_") == unit


def test_a_program_is_as_long_as_all_that_it_calls() -> None:
    unit = """
static __always_inline void add(
    u64 *sum)
{
	one;
	two;
}

int on_long(u64 *ctx)
{
	add(ctx);
	add(ctx);
	add(ctx);
}

int on_short(u64 *ctx)
{
	one;
	two;
	three;
}

int on_middle(u64 *ctx)
{
	one;
	two;
	three;
	four;
}
"""
    assert share_out(unit, ["on_long", "on_middle", "on_short"]) == (
        ("on_long",),
        ("on_middle", "on_short"),
    )


def test_each_round_of_an_unrolled_loop_counts() -> None:
    unit = """
int on_loop(u64 *ctx)
{
#pragma unroll
	for (i = 0; i < 4; i++)
		one;
}

int on_first(u64 *ctx)
{
	one;
	two;
	three;
	four;
}

int on_second(u64 *ctx)
{
	one;
	two;
	three;
	four;
	five;
}
"""
    assert share_out(unit, ["on_first", "on_loop", "on_second"]) == (
        ("on_loop",),
        ("on_second", "on_first"),
    )


def test_each_program_of_the_unit_is_in_one_share() -> None:
    unit = composed()
    programs = re.findall(r"^int (on_\w+)\(", unit, re.MULTILINE)
    one, other = share_out(unit, {*programs, "read_without_a_program"})
    assert len(programs) > 12
    assert sorted(one + other) == sorted({*programs, "read_without_a_program"})


def test_the_longest_program_of_the_unit_is_no_neighbour_of_short_ones() -> None:
    short = ("on_process_fork", "on_process_exit")
    assert share_out(composed(), ["on_tcp_probe", *short]) == (("on_tcp_probe",), short)


def test_programs_of_unknown_length_are_shared_out_in_turns() -> None:
    assert share_out("", ["c", "a", "b"]) == (("a", "c"), ("b",))
