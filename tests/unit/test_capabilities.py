"""Which capabilities measuring needs, and what stands for them."""

from __future__ import annotations

import pytest

from latencyprobe.process.capabilities import (
    CAP_BPF,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
    NEEDED,
    MissingCapabilityError,
    missing_capabilities,
)


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
