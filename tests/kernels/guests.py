"""One guest a kernel: boots it, and reads what its tests said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.kernels import vm
from tests.kernels.debian import RELEASES, Release, obtain
from tests.kernels.errors import KernelError
from tests.kernels.inside.results import KernelCoverage, read_coverage
from tools.cache import cache_directory

VARIABLE = "LATENCYPROBE_KERNELS"
ARGUMENTS_VARIABLE = "LATENCYPROBE_KERNELS_PYTEST"
# The kernel that `make test` boots: of those that are widely run, the one that differs most from
# what machines with new kernels show in tests/live.
DEFAULT = "6.1"
GUEST_SECONDS = 1500


@dataclass(frozen=True, slots=True)
class Case:
    """A test inside a guest; `failure` is what it said, None if it passed."""

    name: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class Guest:
    """What became of a guest."""

    version: str
    cases: tuple[Case, ...]
    coverage: tuple[KernelCoverage, ...]
    complaints: tuple[str, ...]
    console: Path


def wanted_releases(names: str) -> tuple[Release, ...]:
    """Those of the series named, with commas between; "" is the default, "all" is all."""
    known = {release.series: release for release in RELEASES}
    if names == "all":
        return RELEASES
    try:
        return tuple(known[name.strip()] for name in (names or DEFAULT).split(","))
    except KeyError as error:
        raise KernelError(
            f"{VARIABLE}: {error.args[0]!r} is no kernel of ours (there are: {', '.join(known)})"
        ) from error


def results_folder(release: Release) -> Path:
    """Where the last run's reports and console are kept."""
    return cache_directory() / "kernels" / f"results-{release.series}"


def run_tests(release: Release) -> Guest:
    """Boot the kernel and run its tests. Raises KernelError if that can't be done."""
    kernel = obtain(release)
    results = results_folder(release)
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    command = [f"{vm.PROGRAMS}/python", "-m", "tests.kernels.inside", str(results)]
    command.append(f"--pytest={os.environ.get(ARGUMENTS_VARIABLE, '')}")
    if release.with_headers:
        command.append(f"--headers={kernel.folder}")
    console = vm.run(kernel, command, results, seconds=GUEST_SECONDS)
    if (results / "status").read_text().strip() != "0":
        raise vm.GuestFailedError(f"{kernel.version}: the tests could not run", console)
    return Guest(
        kernel.version,
        tuple(case for report in sorted(results.glob("*.xml")) for case in cases_in(report)),
        tuple(read_coverage(results)),
        tuple(console.complaints()),
        console.path,
    )


def cases_in(report: Path) -> Sequence[Case]:
    """The tests of a JUnit report, a failed set-up or tear-down being a failure."""
    return [
        Case(f"{case.get('classname')}::{case.get('name')}", _failure(case))
        for case in ElementTree.parse(report).iter("testcase")
    ]


def _failure(case: ElementTree.Element) -> str | None:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return f"{kind}: {found.get('message', '')}\n{found.text or ''}"
    return None
