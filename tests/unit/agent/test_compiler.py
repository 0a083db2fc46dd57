"""Compiling by two processes: a parent and its child."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.build.compiler import CompileError
from latencyprobe_agent.kernel.compiled import MapDefinition, Program
from tests.patience import patient

FUNCTIONS = ("a", "b", "c", "d", "e")
MAPS = (MapDefinition("stats", 2, 4, 8, 1, 0),)
InChild = Callable[[], None]
MEBIBYTE = 1 << 20
# Prints the bound of each half in MiB, and of the second half again after its child has failed.
BOUNDED = r"""
import os, resource, sys
from latencyprobe_agent.kernel.build import compiler

def compiled(source, functions):
    bound, _ = resource.getrlimit(resource.RLIMIT_DATA)
    os.write(1, f"{functions[0]} {bound >> 20}\n".encode())  # at once, beside the other half
    if os.getpid() != parent:
        raise compiler.CompileError("no")
    return compiler._Code({}, ())

parent = os.getpid()
compiler._compile = compiled
compiler._limit_data(int(sys.argv[1]) << 20)
os.write(1, f"{compiler._processes()}\n".encode())
compiler._compile_by_two("", ("a", "b"))
"""
# Two processes write to a file that is their standard error, as the agent gives it.
REPORTING = """
import os, sys
from latencyprobe_agent.kernel.build import compiler

def compiled(source, functions):
    with compiler._captured_stderr() as diagnostics:
        os.write(2, functions[0].encode())
        if os.getpid() == parent:
            assert diagnostics() == functions[0], diagnostics()
    return compiler._Code({}, ())

parent = os.getpid()
compiler._compile = compiled
os.write(2, b"before, ")
compiler._compile_by_two("", ("a", "b"))
os.abort()
"""
# A compiler process whose both halves take long: it prints the number of its child.
SLOW = """
import os, time
from latencyprobe_agent.kernel.build import compiler

def slow(source, functions):
    if functions[0] == "b":
        print(os.getpid(), flush=True)
    time.sleep(600)

compiler._compile = slow
compiler._compile_by_two("", ("a", "b"))
"""


def compile_by_two(
    monkeypatch: pytest.MonkeyPatch, in_child: InChild, maps_of_child: tuple[MapDefinition, ...]
) -> tuple[compiler._Code, list[Sequence[str]]]:
    """Compile all functions; return the code, with the parts that the parent compiled."""
    parts: list[Sequence[str]] = []
    parent = os.getpid()

    def fake(_source: str, functions: Sequence[str]) -> compiler._Code:
        is_child = os.getpid() != parent
        if is_child:
            in_child()
        parts.append(functions)
        programs = {name: Program(name.encode() * 8) for name in functions}
        return compiler._Code(programs, maps_of_child if is_child else MAPS)

    monkeypatch.setattr(compiler, "_compile", fake)
    return compiler._compile_by_two("", FUNCTIONS), parts


def nothing_special() -> None:
    """Let the child compile."""


def fail() -> None:
    raise CompileError("no")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_process_compiles_half(monkeypatch: pytest.MonkeyPatch) -> None:
    code, parts = compile_by_two(monkeypatch, nothing_special, MAPS)
    assert parts == [("a", "c", "e")]
    assert code.programs == {name: Program(name.encode() * 8) for name in FUNCTIONS}
    assert code.maps == MAPS


@pytest.mark.parametrize("end", [fail, be_killed])
def test_the_parent_compiles_the_half_of_a_child_that_fails(
    monkeypatch: pytest.MonkeyPatch, end: InChild
) -> None:
    code, parts = compile_by_two(monkeypatch, end, MAPS)
    assert parts == [("a", "c", "e"), ("b", "d")]
    assert code.programs.keys() == set(FUNCTIONS)


def test_halves_with_different_maps_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="different maps"):
        compile_by_two(monkeypatch, nothing_special, ())


def test_the_child_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([child], [], [], patient(30))[0], "the child still runs"
        finally:
            os.close(child)


def test_a_bound_of_memory_is_shared_by_two_and_whole_for_the_one_that_is_left() -> None:
    lines = _output(BOUNDED, "300")
    assert lines[0] == "2" or len(os.sched_getaffinity(0)) == 1
    assert set(lines[1:3]) == {"a 150", "b 150"}
    assert lines[3:] == ["b 300"]


def test_one_process_compiles_where_memory_is_short_for_two() -> None:
    assert _output(BOUNDED, "200")[0] == "1"


def _output(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def test_a_lower_limit_of_data_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (MEBIBYTE, 50 * MEBIBYTE))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    compiler._limit_data(60 * MEBIBYTE)
    compiler._limit_data(40 * MEBIBYTE)
    assert limits == [(50 * MEBIBYTE, 50 * MEBIBYTE), (40 * MEBIBYTE, 40 * MEBIBYTE)]


def test_the_agents_file_has_what_native_code_wrote_before_the_process_ended(
    tmp_path: Path,
) -> None:
    with (tmp_path / "stderr").open("w+b") as stderr:
        done = subprocess.run([sys.executable, "-c", REPORTING], stderr=stderr, check=False)
    assert done.returncode == -signal.SIGABRT
    assert (tmp_path / "stderr").read_text() == "before, a"
