"""Python processes that we start execute nobody else's files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from latencyprobe.process import interpreter

ROOT = Path(__file__).parents[2]
PRODUCT = ("latencyprobe", "node_agent", "operator", "tools")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with a `json.py` that leaves a proof when it is executed."""
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w').close()\n")
    return tmp_path


def test_a_module_in_the_working_directory_is_not_executed(planted: Path) -> None:
    ended = subprocess.run(
        interpreter.python_module("json.tool", "--help"),
        cwd=planted,
        env={**os.environ, "PYTHONPATH": str(planted)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "usage" in ended.stdout
    assert not (planted / "proof").exists()


def test_only_what_is_needed_of_the_environment_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = {
        **dict.fromkeys(("PATH", "HOME", "LANG", "LC_ALL", "TZ"), "kept"),
        **dict.fromkeys(("PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "BCC_PROBE"), "left"),
        **dict.fromkeys(("LATENCYPROBE_PORT", "AWS_SECRET_ACCESS_KEY", "TMPDIR"), "left"),
    }

    passed = interpreter.environment(ours, ANSWER="42")

    assert passed.pop("TMPDIR") == str(tmp_path)
    assert passed.pop("ANSWER") == "42"
    assert set(passed.values()) == {"kept"}
    assert len(passed) == 5


def _starts(path: Path) -> Iterator[tuple[int, str]]:
    """Where a file puts the interpreter's path into a sequence, and what stands after it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            items = node.args if isinstance(node, ast.Call) else node.elts
            for item, after in zip_longest(items, items[1:]):
                if isinstance(item, ast.Attribute) and ast.unparse(item) == "sys.executable":
                    yield item.lineno, ast.unparse(after) if after else "nothing"


def test_every_interpreter_that_is_started_is_isolated() -> None:
    starts = {
        f"{path.relative_to(ROOT)}:{line}": option
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        for line, option in _starts(path)
    }

    assert len(starts) >= 3
    assert {place: option for place, option in starts.items() if option != "'-I'"} == {}


MODULE_OF_OURS = "python_module"


def _commands(tree: ast.AST) -> set[str]:
    """The names by which a file calls commands that run a module of ours."""
    return {MODULE_OF_OURS} | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and MODULE_OF_OURS in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _surroundings(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Where a file starts a module of ours, with the directory and the environment of each."""
    tree = ast.parse(path.read_text())
    commands = _commands(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(
            isinstance(item, ast.Starred) and commands & set(re.findall(r"\w+", ast.unparse(item)))
            for item in node.args
        ):
            keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
            yield (
                node.lineno,
                {
                    "cwd": keywords.get("cwd", "ours"),
                    "env": keywords.get("env", "ours").partition("(")[0],
                },
            )


def test_every_module_that_is_started_has_a_directory_and_an_environment_without_files() -> None:
    starts = {
        f"{path.relative_to(ROOT)}:{line}": surroundings
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        for line, surroundings in _surroundings(path)
    }
    wanted = {"cwd": "interpreter.DIRECTORY", "env": "interpreter.environment"}

    assert len(starts) >= 3
    assert {place: found for place, found in starts.items() if found != wanted} == {}
