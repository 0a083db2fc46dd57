"""The benchmarks run to their end on this machine; their figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_measures_what_it_is_for(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench", name, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, capfd.readouterr().err
    assert json.loads(ended.stdout)
    with capfd.disabled():
        print(f"\n{name}: {ended.stdout}")
