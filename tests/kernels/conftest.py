"""Which kernels are booted, and the matrix of what each of them measures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import pytest
import pytest_asyncio

from tests.kernels.debian import Kernel, Release, obtain
from tests.kernels.errors import KernelError
from tests.kernels.guests import (
    VARIABLE,
    Guest,
    guests_at_a_time,
    only_run,
    run_tests,
    wanted_releases,
)
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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def guest_of(
    request: pytest.FixtureRequest,
) -> AsyncIterator[Callable[[Release], Awaitable[Guest]]]:
    """What came of each kernel's guest. Each is booted once, and as many at a time as there are
    CPUs for."""
    columns = request.config.stash.setdefault(COVERAGE, [])
    at_a_time = asyncio.Semaphore(guests_at_a_time())

    async def boot(kernel: Kernel) -> Guest:
        async with at_a_time:
            return await run_tests(kernel)

    with only_run():
        kernels = [obtain(release) for release in _asked_for(request.session.items)]
        guests = {kernel.release: asyncio.create_task(boot(kernel)) for kernel in kernels}

        async def of(release: Release) -> Guest:
            guest = await asyncio.shield(guests[release])
            columns.extend(column for column in guest.coverage if column not in columns)
            return guest

        try:
            yield of
        finally:
            for guest in guests.values():
                guest.cancel()
            await asyncio.gather(*guests.values(), return_exceptions=True)


def _asked_for(items: Iterable[pytest.Item]) -> list[Release]:
    """The kernels of the tests that are going to run."""
    callspecs = (getattr(item, "callspec", None) for item in items)
    found = (callspec.params.get("release") for callspec in callspecs if callspec is not None)
    return list(dict.fromkeys(release for release in found if release is not None))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The matrix of this run."""
    if columns := config.stash.get(COVERAGE, []):
        terminalreporter.section("coverage by kernel")
        terminalreporter.write_line(matrix(columns))
