"""Every checker agrees with every file that it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = Path(sys.executable).parent


def checkers() -> Mapping[str, Sequence[str | Path]]:
    return {
        "ruff check": [OURS / "ruff", "check"],
        "ruff format": [OURS / "ruff", "format", "--check"],
        "mypy": [OURS / "mypy"],
        "import-linter": [OURS / "lint-imports", "--no-logo"],
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
