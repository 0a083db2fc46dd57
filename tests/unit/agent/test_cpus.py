"""How many numbers of CPUs there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from latencyprobe_agent.kernel.load.cpus import cpu_numbers, received_bits


@pytest.mark.parametrize(
    ("text", "expected"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 12), ("0,2\n", 3)]
)
def test_gaps_have_numbers_too(tmp_path: Path, text: str, expected: int) -> None:
    possible = tmp_path / "possible"
    possible.write_text(text)
    assert cpu_numbers(possible) == expected


def test_the_largest_kernel_is_meant_where_nothing_is_known(tmp_path: Path) -> None:
    assert cpu_numbers(tmp_path / "possible") == 8192


@pytest.mark.parametrize(
    ("cpus", "elements"), [(1, 1 << 12), (4, 1 << 12), (5, 1 << 13), (64, 1 << 16), (8192, 1 << 16)]
)
def test_the_table_of_packets_grows_with_the_cpus_and_is_bounded(cpus: int, elements: int) -> None:
    assert 1 << received_bits(cpus) == elements
