"""The tests inside a guest, as tests outside: one guest a kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.kernels.debian import Release
from tests.kernels.guests import Guest
from tests.kernels.matrix import DOCUMENT, cells_of, documented, head, matrix

GuestOf = Callable[[Release], Awaitable[Guest]]

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_tests_inside_pass(
    guest_of: GuestOf, release: Release, subtests: pytest.Subtests
) -> None:
    guest = await guest_of(release)
    for case in guest.cases:
        with subtests.test(f"{guest.version}: {case.name}"):
            assert case.failure is None, case.failure
    assert guest.cases


async def test_the_kernel_has_nothing_to_complain_of(guest_of: GuestOf, release: Release) -> None:
    guest = await guest_of(release)
    assert not guest.complaints, f"{guest.console}: {guest.complaints}"


async def test_the_kernels_types_come_from_each_source(guest_of: GuestOf, release: Release) -> None:
    guest = await guest_of(release)
    sources = {column.types for column in guest.coverage}
    assert sources == ({"btf", "headers", "none"} if release.with_headers else {"btf"})


async def test_the_docs_show_what_was_measured(guest_of: GuestOf, release: Release) -> None:
    guest = await guest_of(release)
    shown = cells_of(documented())
    for column in guest.coverage:
        measured = cells_of(matrix([column]))[head(column)]
        in_docs = {name: shown.get(head(column), {}).get(name) for name in measured}
        assert in_docs == measured, (
            f"{DOCUMENT}, column {head(column)!r}: `python -m tests.kernels --write` renews it"
        )
