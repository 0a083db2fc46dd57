"""The tests inside a guest, as tests outside: one guest a kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernels.debian import Release
from tests.kernels.guests import Guest

GuestOf = Callable[[Release], Guest]


def test_the_tests_inside_pass(
    guest_of: GuestOf, release: Release, subtests: pytest.Subtests
) -> None:
    guest = guest_of(release)
    for case in guest.cases:
        with subtests.test(f"{guest.version}: {case.name}"):
            assert case.failure is None, case.failure
    assert guest.cases


def test_the_kernel_has_nothing_to_complain_of(guest_of: GuestOf, release: Release) -> None:
    guest = guest_of(release)
    assert not guest.complaints, f"{guest.console}: {guest.complaints}"


def test_the_kernels_types_come_from_each_source(guest_of: GuestOf, release: Release) -> None:
    sources = {column.types for column in guest_of(release).coverage}
    assert sources == ({"btf", "headers", "none"} if release.with_headers else {"btf"})
