"""Which kernels are booted, and the matrix of what each of them measures."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.kernels.debian import Release
from tests.kernels.errors import KernelError
from tests.kernels.guests import VARIABLE, Guest, run_tests, wanted_releases
from tests.kernels.inside.results import RESULTS_VARIABLE, KernelCoverage
from tests.kernels.matrix import matrix

COVERAGE = pytest.StashKey[list[KernelCoverage]]()

# Those run inside a guest.
collect_ignore = [] if RESULTS_VARIABLE in os.environ else ["inside"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for a `release` run for each kernel that is wanted."""
    if "release" not in metafunc.fixturenames:
        return
    try:
        releases = wanted_releases(os.environ.get(VARIABLE, ""))
    except KernelError as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("release", releases, ids=[release.series for release in releases])


@pytest.fixture(scope="session")
def guest_of(pytestconfig: pytest.Config) -> Callable[[Release], Guest]:
    """Boots each kernel once, and remembers what came of it."""
    guests: dict[Release, Guest | KernelError] = {}
    columns = pytestconfig.stash.setdefault(COVERAGE, [])

    def boot(release: Release) -> Guest:
        if release not in guests:
            try:
                guests[release] = guest = run_tests(release)
                columns.extend(guest.coverage)
            except KernelError as error:
                guests[release] = error
        found = guests[release]
        if isinstance(found, KernelError):
            raise found
        return found

    return boot


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The matrix of this run."""
    if columns := config.stash.get(COVERAGE, []):
        terminalreporter.section("coverage by kernel")
        terminalreporter.write_line(matrix(columns))
