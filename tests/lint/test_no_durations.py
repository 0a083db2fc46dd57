"""No test of `make test` asserts a duration or a rate of this machine: it is slow now and then.

Suspects are upper limits of differences of a clock, of names that have one in the same file, and of
CPU times in percent. A test that is marked `thorough` may have them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOCKS = frozenset(
    {
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "time",
        "time_ns",
    }
)
# asyncio's clock, of a loop by that name or as it is asked for.
LOOP = re.compile(r"(?:.*\.)?_?loop|asyncio\.get_(?:running|event)_loop\(\)|get_running_loop\(\)")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def upper_limits(source: str) -> Iterator[int]:
    """The lines of asserts that a duration by this machine's clock, or a rate, is below something.

    Not those of thorough tests.
    """
    tree = ast.parse(source)
    durations = frozenset(_names_of_durations(tree))
    for function in ast.walk(tree):
        if isinstance(function, Function) and not _is_thorough(function):
            for each in ast.walk(function):
                if isinstance(each, ast.Assert) and _is_limited(each.test, durations):
                    yield each.lineno


def _is_thorough(function: Function) -> bool:
    return any("thorough" in ast.unparse(each).lower() for each in function.decorator_list)


def _names_of_durations(tree: ast.Module) -> Iterator[str]:
    """The names that have a difference of a clock, and those of functions that return one."""
    for each in ast.walk(tree):
        if isinstance(each, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            if each.value is not None and _has_difference(each.value):
                yield from filter(None, map(_name, targets))
        elif isinstance(each, Function):
            returned = (inner.value for inner in ast.walk(each) if isinstance(inner, ast.Return))
            if any(value is not None and _has_difference(value) for value in returned):
                yield each.name


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
                if _is_rate(smaller) and not _is_rate(larger):
                    return True
    return False


def _is_duration(value: ast.expr, durations: frozenset[str]) -> bool:
    """An expression with a difference of a clock in it, or with the name of such a one."""
    return _has_difference(value) or any(_name(each) in durations for each in ast.walk(value))


def _is_rate(value: ast.expr) -> bool:
    """An expression with `.cpu_percent` or the like; the order of two of them is none."""
    attributes = (each.attr for each in ast.walk(value) if isinstance(each, ast.Attribute))
    return any(name == "percent" or name.endswith("_percent") for name in attributes)


def _has_difference(value: ast.expr) -> bool:
    return any(
        isinstance(each, ast.BinOp)
        and isinstance(each.op, ast.Sub)
        and any(map(_is_clock, ast.walk(each)))
        for each in ast.walk(value)
    )


def _is_clock(value: ast.AST) -> bool:
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return False
    owner = ast.unparse(value.func.value)
    if owner == "time":
        return value.func.attr in CLOCKS
    return value.func.attr == "time" and LOOP.fullmatch(owner) is not None


def _name(value: ast.AST) -> str | None:
    if isinstance(value, ast.Name):
        return value.id
    return value.attr if isinstance(value, ast.Attribute) else None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("assert 5 >= time.monotonic() - began", True),
        ("assert 1 < time.perf_counter() - began < 5", True),
        ("took = time.monotonic() - began\n assert took < LIMIT_S", True),
        ("took = time.monotonic() - began\n assert done and took <= 3", True),
        ("seen.open_s += time.monotonic() - began\n assert abs(seen.open_s - 1) < 2", True),
        ("def late_s() -> float:\n  return time.monotonic() - due\n assert late_s() < 1", True),
        ("assert engine.overhead().cpu_percent <= BUDGET_PERCENT", True),
        ("assert 1.2 > paid.percent(2)", True),
        ("assert time.time() - began < 5", True),
        ("assert time.time_ns() - began < 5_000_000_000", True),
        ("assert loop.time() - began < 5", True),
        ("took = asyncio.get_running_loop().time() - began\n assert took < 5", True),
        ("assert self._loop.time() - began < 5", True),
        ("assert time.monotonic() < deadline, 'a wait'", False),
        ("assert loop.time() < deadline, 'a wait'", False),
        ("assert clock.time() - began < 5", False),
        ("took = time.monotonic() - began\n assert reported < took", False),
        ("assert time.monotonic() - began > 0.5", False),
        ("assert overhead.cpu_percent > 0", False),
        ("assert one.cpu_percent < other.cpu_percent", False),
    ],
)
def test_a_limit_of_a_duration_or_a_rate_is_found(line: str, *, found: bool) -> None:
    assert bool(list(upper_limits(f"def test() -> None:\n {line}"))) is found


def test_a_thorough_test_may_limit_a_rate() -> None:
    limit = "def test() -> None:\n assert paid.percent(2) < 1"
    assert list(upper_limits(limit))
    assert not list(upper_limits(f"@pytest.mark.thorough\n{limit}"))


def test_no_test_limits_a_duration_or_a_rate() -> None:
    limits = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in upper_limits(path.read_text())
    ]

    assert not limits, "assert the event and its order; a wait has a deadline"
