"""Which capabilities measuring needs, and what stands for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from latencyprobe.process.capabilities import (
    CAP_BPF,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
    NEEDED,
    MissingCapabilityError,
    effective_capabilities,
    missing_capabilities,
)
from tests.unit.hostile_text import HOSTILE_COMM


@pytest.fixture(params=[HOSTILE_COMM, b"\rCapEff:\t0"])
def _hostile_name(request: pytest.FixtureRequest) -> Iterator[None]:
    """This process has a name that is no text, or looks like a line of its own."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes(request.param)
    yield
    comm.write_bytes(before.removesuffix(b"\n"))


def mask(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (0, tuple(NEEDED)),
        (mask(CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE), ()),
        (mask(CAP_SYS_ADMIN, CAP_SYS_PTRACE), ()),
        (mask(CAP_SYS_ADMIN), (CAP_SYS_PTRACE,)),
        (mask(CAP_BPF, CAP_SYS_PTRACE), (CAP_PERFMON,)),
        ((1 << 41) - 1, ()),
    ],
)
def test_missing_capabilities_are_found(effective: int, missing: tuple[int, ...]) -> None:
    assert missing_capabilities(effective) == missing


def test_the_error_names_each_missing_capability_and_its_use() -> None:
    error = MissingCapabilityError((CAP_PERFMON, CAP_SYS_PTRACE))
    assert error.missing == ("CAP_PERFMON", "CAP_SYS_PTRACE")
    assert "CAP_PERFMON attaches them" in str(error)
    assert "sudo" in str(error)


@pytest.mark.usefixtures("_hostile_name")
def test_a_process_of_any_name_knows_its_capabilities() -> None:
    shown = re.search(rb"^CapEff:\t(\w+)$", Path("/proc/self/status").read_bytes(), re.MULTILINE)
    assert shown
    assert effective_capabilities() == int(shown[1], 16)
