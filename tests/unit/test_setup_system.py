"""tools/setup-system sees what a machine lacks by what is there, not by how it came there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "setup-system"


def check(folder: Path, table: str, *groups: str) -> subprocess.CompletedProcess[str]:
    """`setup-system --check` with a table of its own."""
    shutil.copy(SCRIPT, folder)
    (folder / "system-packages").write_text(table)
    return subprocess.run(
        [folder / SCRIPT.name, "--check", *groups],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_machine_that_lacks_nothing_hears_nothing(tmp_path: Path) -> None:
    table = """
    # a comment
    run command:sh dash a shell
    run file:/etc/passwd base-passwd users
    run python:json python3 documents
    run library:libc.so.6 libc6 everything
    """.replace("    ", "")
    answer = check(tmp_path, table, "run")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "probe", ["command:no-such", "file:/no/such", "python:no_such", "library:libno-such.so.1"]
)
def test_a_missing_package_is_named_with_its_reason(tmp_path: Path, probe: str) -> None:
    answer = check(tmp_path, f"run {probe} such|other-such makes such things\n", "run")
    assert answer.returncode == 1
    assert "such|other-such: makes such things" in answer.stderr


def test_other_groups_needs_do_not_matter(tmp_path: Path) -> None:
    table = "run command:sh dash a shell\ncluster command:no-such such a reason\n"
    assert check(tmp_path, table, "run", "test").returncode == 0
    assert check(tmp_path, table, "run", "cluster").returncode == 1
