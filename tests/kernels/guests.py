"""One guest a kernel: boots it, and reads what its tests said."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.kernels import vm
from tests.kernels.debian import RELEASES, Kernel, Release
from tests.kernels.errors import KernelError
from tests.kernels.inside.results import KernelCoverage, read_coverage
from tests.kernels.vm import ROOT
from tools.cache import cache_directory

VARIABLE = "LATENCYPROBE_KERNELS"
ARGUMENTS_VARIABLE = "LATENCYPROBE_KERNELS_PYTEST"
# The kernel that `make test` boots: of those that are widely run, the one that differs most from
# what machines with new kernels show in tests/live.
DEFAULT = "6.1"
GUEST_SECONDS = 7200


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


class GuestsBusyError(KernelError):
    """Somebody else's guests run: results and time would be both runs'."""

    def __init__(self, holder: str, lock: Path) -> None:
        super().__init__(
            f"the guests of another run are not done yet: {holder or 'a process'} holds {lock}. "
            "Wait for its end, or stop it"
        )


@contextmanager
def only_run() -> Iterator[None]:
    """Held by the run of tests that has guests. Raises GuestsBusyError if another one has it."""
    path = cache_directory() / "kernels" / "guests.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise GuestsBusyError(lock.read(), path) from None
        lock.truncate(0)
        lock.write(f"PID {os.getpid()} in {ROOT}")
        lock.flush()
        yield


def guests_at_a_time() -> int:
    """One a CPU, as far as there is memory for them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available_kib,) = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    room = available_kib * 1024 // vm.MEMORY_BYTES - 1
    return max(1, min(len(os.sched_getaffinity(0)), room))


async def run_tests(kernel: Kernel) -> Guest:
    """Boot the kernel and run its tests. Raises KernelError if that can't be done."""
    release = kernel.release
    results = results_folder(release)
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    command = [f"{vm.PROGRAMS}/python", "-m", "tests.kernels.inside", str(results)]
    command.append(f"--pytest={pytest_arguments(os.environ)}")
    if release.with_headers:
        command.append(f"--headers={kernel.folder}")
    console = await vm.run(kernel, command, results, seconds=GUEST_SECONDS)
    if (results / "status").read_text().strip() != "0":
        raise vm.GuestFailedError(f"{kernel.version}: the tests could not run", console)
    return Guest(
        kernel.version,
        tuple(case for report in sorted(results.glob("*.xml")) for case in cases_in(report)),
        tuple(read_coverage(results)),
        tuple(console.complaints()),
        console.path,
    )


def pytest_arguments(environment: Mapping[str, str]) -> str:
    """Those for pytest in a guest.

    Where no kernel is named, as in `make test`, second choices of hooks are left to `make
    test-kernels`, and to tests/live on this machine's kernel.
    """
    chosen = "" if environment.get(VARIABLE) else "--first-choices-alone "
    return chosen + environment.get(ARGUMENTS_VARIABLE, "")


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
