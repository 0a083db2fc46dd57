"""Test modules are leaves, with a named module for what several need; packages have contracts."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of what a module imports, names from packages included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            yield package
            yield from (f"{package}.{alias.name}" for alias in node.names)


def imported_test_modules(source: str) -> list[str]:
    """Those that pytest collects or loads by itself: tests and conftest.py."""
    return [
        module
        for module in imported_modules(source)
        if (name := module.rpartition(".")[2]) == "conftest"
        or (name.startswith("test_") and name.islower() and is_module(module))
    ]


def is_module(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").exists()


@pytest.mark.parametrize(
    "line",
    [
        "from tests.lint.test_structure import ROOT",
        "from tests.lint import test_structure",
        "import tests.lint.test_structure",
        "from tests.live.conftest import pair",
    ],
)
def test_an_import_of_a_test_module_is_found(line: str) -> None:
    assert imported_test_modules(line)


def test_no_module_imports_a_test_module() -> None:
    importing = {
        str(path.relative_to(ROOT)): found
        for path in (ROOT / "tests").rglob("*.py")
        if (found := imported_test_modules(path.read_text()))
    }

    assert importing == {}, "move what they share into a module of its own"


def test_every_package_has_an_exhaustive_contract() -> None:
    """A module that no layer lists fails import-linter in a package that has one."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    exhaustive = {
        container
        for contract in configuration["tool"]["importlinter"]["contracts"]
        if contract.get("exhaustive")
        for container in contract["containers"]
    }
    packages = {
        ".".join(marker.parent.relative_to(root).parts)
        for root in (ROOT, ROOT / "node_agent", ROOT / "operator")
        for marker in root.glob("latencyprobe*/**/__init__.py")
    }
    assert packages - exhaustive == {"latencyprobe.protocol.v1"}  # generated


def test_no_tracked_file_is_one_that_git_ignores() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout
