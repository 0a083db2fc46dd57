"""The series of agents' metrics, and the figures that docs/metrics.md states of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.scrapes import NATIVE, OPENMETRICS, SETTINGS, BusyAgent, series_of
from latencyprobe.domain.causes import Bottleneck
from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.domain.pending import PENDING_KINDS, Pending
from latencyprobe.domain.stages import (
    CGROUP_COUNTERS,
    COUNTERS,
    DROPS,
    DROPS_IN,
    TARGET_STAGES,
    WAITED_FOR_CGROUP,
    Module,
)
from latencyprobe_agent.totals import MAX_COUNTERS
from tests.unit.agent.sample_figures import registry_of, window_report
from tests.unit.agent.totals_of import Followed, probe_on

ROOT = Path(__file__).parents[3]
MAX_PODS = 110
PODS = 10_000
# The bound has room, so that a new counter leaves the page as it is.
ROOM_FOR_COUNTERS = 2
FAMILIES_OF_COUNTERS = (DROPS, DROPS_IN, WAITED_FOR_CGROUP)
TARGET_COUNTERS = [each.name for each in COUNTERS if each.module != Module.IRQ]


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
        nodes * series_of(full.registry, accept) + (series_of(rest.registry, accept) if rest else 0)
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
        (series_of(agent.registry, NATIVE), series_of(agent.registry, OPENMETRICS)), rel=0.05
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
        found, *parts = (series_of(each.registry, accept) for each in (beyond, at_limit, others))
        assert found <= sum(parts)


def series_of_the_worst_pods(*pods: str) -> tuple[int, int]:
    """The series of an agent with these pods, each with all that a pod can have."""
    followed = Followed()
    followed.follow(probe_on(*pods))
    # Counters of families first: those of the vocabulary come in addition to a full table.
    details = {DROPS: "REASON_", DROPS_IN: "function_", WAITED_FOR_CGROUP: ""}
    names = [f"{each}.{details[each]}{n}" for each in FAMILIES_OF_COUNTERS for n in range(1000)]
    followed.read(Measurement(counters=dict.fromkeys(names, 1)), pods)
    histogram = Histogram({60: 1}, sum_ns=10_000, min_ns=10_000, max_ns=10_000)
    lossy = StageMeasurement(histogram, lost=1, unmatched=1, clamped=1)
    followed.read(
        Measurement(
            {stage.name: lossy for stage in TARGET_STAGES},
            dict.fromkeys([*TARGET_COUNTERS, *CGROUP_COUNTERS], 1),
            pending={kind.name: Pending(1, oldest_ns=1) for kind in PENDING_KINDS},
        ),
        pods,
    )
    report = window_report(**dict.fromkeys(pods, Bottleneck.PEER))
    registry = registry_of(followed.totals, report)
    return series_of(registry, NATIVE), series_of(registry, OPENMETRICS)


def test_no_pod_has_more_series_than_the_page_states() -> None:
    one, two = series_of_the_worst_pods("a"), series_of_the_worst_pods("a", "b")
    found = tuple(more - less for more, less in zip(two, one, strict=True))
    counters = MAX_COUNTERS + len([*FAMILIES_OF_COUNTERS, *TARGET_COUNTERS, *CGROUP_COUNTERS])
    losses, classic = 3, 17
    others = losses * len(TARGET_STAGES) + counters + 2 * len(PENDING_KINDS) + len(Bottleneck)

    assert found == (len(TARGET_STAGES) + others, classic * len(TARGET_STAGES) + others)
    bound = stated(r"A pod has at most ([\d,]+) series with native histograms, ([\d,]+) without")
    with_room = tuple(ours + ROOM_FOR_COUNTERS for ours in found)
    assert all(ours <= theirs for ours, theirs in zip(with_room, bound, strict=True)), found
    assert found == pytest.approx(bound, rel=0.1)
