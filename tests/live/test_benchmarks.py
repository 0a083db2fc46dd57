"""The benchmarks run to their end on this machine; their figures are for people."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHMARKS
from bench.operator_scale import MAX_PODS, SETTINGS
from latencyprobe.domain.stages import DEFAULT_MODULES, stages_of

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
    traffic = figures["traffic"]
    assert traffic["reports"] > 0
    assert traffic["status_writes"] > 0
    # three times as many in an interval, which is longer than it should be on a busy machine
    assert 0 < traffic["all_bad_pods_in_full"] <= 6 * MAX_PODS * figures["probes"]
    # of the event loop's thread alone: it does not grow while other processes run
    longest_ms = SETTINGS[cluster].target.blocked_ms
    assert 0 < figures["processor"]["blocked_cpu_ms"] <= longest_ms


@pytest.mark.thorough
def test_an_agent_reports_the_windows_of_a_few_pods_over_tls() -> None:
    command = [sys.executable, "-m", "bench.agent_windows", "--pods", "5", "--json"]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)

    figures = json.loads(ended.stdout)
    assert figures["pods"] == 5
    assert 0 < figures["decoding_ms"] < figures["cpu_ms"]
    assert figures["report_kib"] > 0
    assert 0 < figures["rss_before_mib"] <= figures["peak_rss_mib"]


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_small_floods_leave_agent_and_operator_serving() -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "bench.floods", "--json", "--connections", "100"),
            *("--messages", "2", "--seconds", "3", "--sockets", "2000"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    figures = json.loads(ended.stdout)
    agent = {row["name"]: row for row in figures["agent"]}
    operator = {row["name"]: row for row in figures["operator"]}
    for name in ("messages of 16 MiB of the operator", "the same, compressed"):
        assert agent[name]["fate"] == {"RESOURCE_EXHAUSTED": 2}
    assert operator["bad reports of 4 MiB"]["refused"]["bad parts"] > 0
    assert [each["targets"] for each in figures["sockets"]] == [1, 4]
    assert all(each["with_mib"] > each["before_mib"] for each in figures["sockets"])


# The operator's own, of no probe.
OWN_SERIES = 100


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_operators_series_at_10000_pods_are_within_the_documented_bound() -> None:
    page = " ".join((ROOT / "docs" / "metrics.md").read_text().split())
    (stated,) = re.findall(
        r"(\d+) probes on 10,000 pods of 1,000 nodes have at most ([\d,]+)", page
    )
    probes, most = (int(number.replace(",", "")) for number in stated)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "bench.operator_scale", "many-probes", "--json"),
            *("--interval", "5", "--intervals", "2"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    figures = json.loads(ended.stdout)
    assert (figures["nodes"], figures["probes"], figures["pods"]) == (1000, probes, 10_000)
    assert (
        probes * len(stages_of(DEFAULT_MODULES)) < figures["scrape"]["series"] <= most + OWN_SERIES
    )
