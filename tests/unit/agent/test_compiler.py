"""Compiling by two processes: a parent and its child."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from latencyprobe_agent.kernel.build import compiler
from latencyprobe_agent.kernel.build.compiler import CompileError
from latencyprobe_agent.kernel.compiled import MapDefinition, Program
from tests.patience import patient

FUNCTIONS = ("a", "b", "c", "d", "e")
MAPS = (MapDefinition("stats", 2, 4, 8, 1, 0),)
InChild = Callable[[], None]
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
