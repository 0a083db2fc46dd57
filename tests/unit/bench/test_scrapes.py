"""The series of agents' metrics, and the figures that docs/metrics.md states of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.scrapes import NATIVE, OPENMETRICS, SETTINGS, BusyAgent

ROOT = Path(__file__).parents[3]
MAX_PODS = 110
PODS = 10_000


def page() -> str:
    return " ".join((ROOT / "docs" / "metrics.md").read_text().split())


def stated(pattern: str) -> tuple[int, int]:
    """The two numbers of a sentence: with native histograms, and with classic buckets."""
    (found,) = re.findall(pattern, page())
    native, classic = (int(number.replace(",", "")) for number in found)
    return native, classic


def series_of_agents(pods_of_a_node: int, max_pods: int) -> tuple[int, int]:
    """The series of PODS pods on as many nodes as they take."""
    nodes, left = divmod(PODS, pods_of_a_node)
    full = BusyAgent(pods_of_a_node, max_pods)
    rest = BusyAgent(left, max_pods) if left else None
    native, classic = (
        nodes * full.series(accept) + (rest.series(accept) if rest else 0)
        for accept in (NATIVE, OPENMETRICS)
    )
    return native, classic


@pytest.mark.parametrize(
    ("pods", "max_pods", "row"),
    [(*setting, row) for setting, row in zip(SETTINGS, ("20", "110", "none of 110"), strict=True)],
)
def test_the_page_has_the_series_of_an_agent(pods: int, max_pods: int, row: str) -> None:
    number = r"([\d,]+) series,[^|]*\|"
    agent = BusyAgent(pods, max_pods)

    # Two digits, rounded.
    assert stated(rf"\| {row} \| {number} {number}") == pytest.approx(
        (agent.series(NATIVE), agent.series(OPENMETRICS)), rel=0.05
    )


def test_10000_pods_with_series_of_their_own_are_within_the_stated_bound() -> None:
    bound = stated(r"own: at most ([\d,]+) series with native histograms, ([\d,]+) without")
    found = series_of_agents(MAX_PODS, MAX_PODS)

    assert all(ours <= theirs for ours, theirs in zip(found, bound, strict=True)), found
    assert found == pytest.approx(bound, rel=0.1)


def test_10000_pods_without_series_of_their_own_are_within_the_stated_bound() -> None:
    bound = stated(r"`metrics.perPod`: at most ([\d,]+), and ([\d,]+)\.")
    found = series_of_agents(MAX_PODS, 0)

    assert all(ours <= theirs for ours, theirs in zip(found, bound, strict=True)), found
    assert found == pytest.approx(bound, rel=0.1)


def test_pods_beyond_the_limit_of_a_node_add_one_sum_for_all() -> None:
    at_limit, beyond = BusyAgent(MAX_PODS, MAX_PODS), BusyAgent(500, MAX_PODS)
    others = BusyAgent(1, 0)

    for accept in (NATIVE, OPENMETRICS):
        assert beyond.series(accept) <= at_limit.series(accept) + others.series(accept)
