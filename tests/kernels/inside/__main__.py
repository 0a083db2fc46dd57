"""What a guest runs: all tests that belong there, with the kernel's types from different sources.

    python -m tests.kernels.inside RESULTS [HEADERS]

RESULTS is a folder for one JUnit report a run of pytest. HEADERS is the root of a tree that holds
the kernel's headers; with it, tests also run with BTF hidden, and then with the headers gone too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.inside.results import RESULTS_VARIABLE
from tests.patience import VARIABLE as PATIENCE_VARIABLE

ROOT = Path(__file__).parents[3]
BTF = Path("/sys/kernel/btf")
EMULATION_IS_SLOWER = 10


def run_tests(results: Path, marker: str) -> None:
    """The tests with this marker; what fails is in the report."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/live", "tests/kernels/inside"),
            *("-m", marker, f"--junitxml={results}/{marker}.xml", "--durations=0"),
            "--color=no",
            # the file system is read-only in large parts, and shared
            *("-p", "no:cacheprovider", "-p", "tests.kernels.inside.shared_builds"),
        ],
        cwd=ROOT,
        check=False,
        env={
            **os.environ,
            PATIENCE_VARIABLE: str(EMULATION_IS_SLOWER),
            RESULTS_VARIABLE: str(results),
        },
    )


def hide_btf() -> None:
    """As in a kernel that was configured without it."""
    subprocess.run(["mount", "-t", "tmpfs", "none", BTF], check=True)


def install_headers(tree: Path) -> list[Path]:
    """Make them appear where their packages put them; returns what was made."""
    made = []
    for found in (*tree.glob("usr/src/linux-*"), *tree.glob("usr/lib/linux-kbuild-*")):
        path = Path("/") / found.relative_to(tree)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(found)
        made.append(path)
    return made


def main() -> None:
    results = Path(sys.argv[1])
    run_tests(results, "every_kernel")
    if len(sys.argv) == 2:
        return
    hide_btf()
    made = install_headers(Path(sys.argv[2]))
    run_tests(results, "headers_alone")
    for path in made:
        path.unlink()
    run_tests(results, "no_types")


if __name__ == "__main__":
    main()
