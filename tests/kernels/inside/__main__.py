"""What a guest runs: all tests that belong there, with the kernel's types from different sources.

RESULTS is a folder for one JUnit report a run of pytest. With the root of a tree that holds the
kernel's headers, tests also run with BTF hidden, and then with the headers gone too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.kernels.inside.results import RESULTS_VARIABLE
from tests.patience import VARIABLE as PATIENCE_VARIABLE

ROOT = Path(__file__).parents[3]
BTF = Path("/sys/kernel/btf")
EMULATION_IS_SLOWER = 10


def run_tests(results: Path, marker: str, arguments: str) -> None:
    """The tests with this marker; what fails is in the report."""
    # Importing all the others takes a minute.
    live = [path for path in ROOT.glob("tests/live/test_*.py") if marker in path.read_text()]
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *map(str, sorted(live)), "tests/kernels/inside"),
            *(
                "-m",
                f"{marker} and not thorough",
                f"--junitxml={results}/{marker}.xml",
                "--durations=0",
            ),
            "--color=no",
            # the file system is read-only in large parts, and shared
            *("-p", "no:cacheprovider", "-p", "tests.kernels.inside.shared"),
            *shlex.split(arguments),
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
    parser = argparse.ArgumentParser("python -m tests.kernels.inside", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--headers", type=Path)
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    options = parser.parse_args()
    run_tests(options.results, "every_kernel", options.pytest)
    if options.headers is None:
        return
    hide_btf()
    made = install_headers(options.headers)
    run_tests(options.results, "headers_alone", options.pytest)
    for path in made:
        path.unlink()
    run_tests(options.results, "no_types", options.pytest)


if __name__ == "__main__":
    main()
