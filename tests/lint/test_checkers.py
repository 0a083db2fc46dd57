"""Every checker agrees with every file that it is for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = Path(sys.executable).parent


def files_of(kind: Callable[[Path], bool]) -> list[Path]:
    """The files of the repository of this kind."""
    listed = subprocess.run(
        # The checkout may be another user's.
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in sorted(set(listed.stdout.split("\0")) - {""}))
    found = [path for path in paths if path.is_file() and kind(path)]
    assert found
    return found


def is_c(path: Path) -> bool:
    return path.suffix in (".c", ".h")


def is_shell(path: Path) -> bool:
    """A script, by its first line."""
    with path.open("rb") as file:
        return re.match(rb"#!.*\b(ba)?sh$", file.readline().strip()) is not None


def is_yaml(path: Path) -> bool:
    """YAML that people write: no template of Helm's, and nothing that is rendered from those."""
    if path.suffix != ".yaml" or "templates" in path.relative_to(ROOT).parts:
        return False
    return not path.read_text().startswith("# Rendered from ")


def checkers() -> Mapping[str, Sequence[str | Path]]:
    return {
        "ruff check": [OURS / "ruff", "check"],
        "ruff format": [OURS / "ruff", "format", "--check"],
        "mypy": [OURS / "mypy"],
        "import-linter": [OURS / "lint-imports", "--no-logo"],
        "clang-format": [OURS / "clang-format", "--dry-run", "--Werror", *files_of(is_c)],
        "shellcheck": ["shellcheck", *files_of(is_shell)],
        "yamllint": [OURS / "yamllint", "--strict", *files_of(is_yaml)],
    }


@pytest.mark.parametrize("checker", checkers())
def test_agrees(checker: str) -> None:
    checked = subprocess.run(
        checkers()[checker],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    if checked.returncode:
        pytest.fail(f"{checker}\n{checked.stdout}", pytrace=False)
