"""No test asserts that something is done within a time: machines are slow now and then."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOCKS = frozenset({"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"})


def upper_limits(source: str) -> Iterator[int]:
    """The lines of asserts that a duration by this machine's clock is below something."""
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            durations = {
                target.id
                for each in ast.walk(function)
                if isinstance(each, ast.Assign) and _is_duration(each.value, frozenset())
                for target in each.targets
                if isinstance(target, ast.Name)
            }
            for each in ast.walk(function):
                if isinstance(each, ast.Assert) and _is_limited(each.test, frozenset(durations)):
                    yield each.lineno


def _is_limited(test: ast.expr, durations: frozenset[str]) -> bool:
    for compare in ast.walk(test):
        if isinstance(compare, ast.Compare):
            sides = [compare.left, *compare.comparators]
            for smaller, operator, larger in zip(sides, compare.ops, sides[1:], strict=False):
                if isinstance(operator, ast.Gt | ast.GtE):
                    smaller, larger = larger, smaller  # noqa: PLW2901
                elif not isinstance(operator, ast.Lt | ast.LtE):
                    continue
                if _is_duration(smaller, durations):
                    return True
    return False


def _is_duration(value: ast.expr, durations: frozenset[str]) -> bool:
    """A difference with a clock in it, or a name of such a one."""
    if isinstance(value, ast.Name):
        return value.id in durations
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Sub)
        and any(
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr in CLOCKS
            and ast.unparse(each.func.value) == "time"
            for each in ast.walk(value)
        )
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("assert 5 >= time.monotonic() - began", True),
        ("assert 1 < time.perf_counter() - began < 5", True),
        ("took = time.monotonic() - began\n assert took < LIMIT_S", True),
        ("took = time.monotonic() - began\n assert done and took <= 3", True),
        ("assert time.monotonic() < deadline, 'a wait'", False),
        ("took = time.monotonic() - began\n assert reported < took", False),
        ("assert time.monotonic() - began > 0.5", False),
    ],
)
def test_a_limit_of_a_duration_is_found(line: str, *, found: bool) -> None:
    assert bool(list(upper_limits(f"def test() -> None:\n {line}"))) is found


def test_no_test_limits_a_duration() -> None:
    limits = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in upper_limits(path.read_text())
    ]

    assert not limits, "assert the event and its order; a wait has a deadline"
