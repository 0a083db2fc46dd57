"""The benchmarks run to their end on this machine; their figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS
from bench.operator_scale import MAX_PODS, SETTINGS

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


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cluster", SETTINGS)
def test_a_small_cluster_reports_to_the_operator_in_full(cluster: str) -> None:
    command = [sys.executable, "-m", "bench.operator_scale", cluster, "--json"]
    ended = subprocess.run(
        [*command, "--nodes", "6", "--interval", "1", "--intervals", "3"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    figures = json.loads(ended.stdout)
    assert figures["nodes"] == 6
    assert figures["reports"] > 0
    assert figures["status_writes"] > 0
    assert 0 < figures["all_bad_pods_in_full"] <= 3 * MAX_PODS * figures["probes"]
