"""Test modules are leaves, with a named module for what several need; packages have contracts."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The folders that hold packages, each with its root packages.
ROOT_PACKAGES = {
    ROOT: ("latencyprobe", "bench", "devcluster", "tests", "tools"),
    ROOT / "node_agent": ("latencyprobe_agent",),
    ROOT / "operator": ("latencyprobe_operator",),
}
GENERATED = "latencyprobe.protocol.v1"


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


def packages() -> set[str]:
    """The packages that need a contract: below `tests`, modules are leaves, and none does."""
    found = {
        ".".join(marker.parent.relative_to(folder).parts)
        for folder, roots in ROOT_PACKAGES.items()
        for root in roots
        for marker in (folder / root).glob("**/__init__.py")
    }
    return {package for package in found if not package.startswith("tests.")} - {GENERATED}


def test_every_package_has_an_exhaustive_contract() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    exhaustive = [
        container
        for contract in configuration["tool"]["importlinter"]["contracts"]
        if contract.get("exhaustive")
        for container in contract["containers"]
    ]

    assert sorted(exhaustive) == sorted(packages())


def test_a_module_that_no_layer_lists_is_reported_in_every_package(tmp_path: Path) -> None:
    for folder, roots in ROOT_PACKAGES.items():
        for root in roots:
            copy = tmp_path / folder.relative_to(ROOT) / root
            shutil.copytree(folder / root, copy, ignore=_without_python)
    for marker in tmp_path.rglob("__init__.py"):
        (marker.parent / "stray.py").write_text('"""A module without a place."""\n')
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    folders = (tmp_path / folder.relative_to(ROOT) for folder in ROOT_PACKAGES)

    linted = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert set(re.findall(r"^- ([\w.]+)\.stray$", linted.stdout, flags=re.MULTILINE)) == packages()


def _without_python(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name == "__pycache__" or not (name.endswith(".py") or (Path(folder) / name).is_dir())
    }


def test_every_module_is_in_a_package_that_has_contracts() -> None:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "--", "*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    homes = tuple(
        f"{(folder / root).relative_to(ROOT)}/"
        for folder, roots in ROOT_PACKAGES.items()
        for root in roots
    )

    homeless = [path for path in listed.stdout.splitlines() if not path.startswith(homes)]

    assert homeless == ["setup.py"]


def test_every_helper_module_of_the_tests_is_used() -> None:
    """No layer lists the modules of a tier: a helper belongs there if a test imports it."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "__init__.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    used = {
        module
        for importer, path in names.items()
        for module in imported_modules(path.read_text())
        if module != importer
    }
    leaves = re.compile(r"(test_\w+|conftest|__main__)$")
    # A program that a test starts by its name is used, too.
    sources = "".join(path.read_text() for path in paths)

    unused = [
        name
        for name, path in names.items()
        if not leaves.search(name)
        and name not in used
        and f'"{name}"' not in sources
        and f'"{path.name}"' not in sources
    ]

    assert unused == [], "remove them, or import them where they are needed"


def test_no_tracked_file_is_one_that_git_ignores() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout
