"""Percentiles of sampled packets beside those of all, as a table and as bars."""

from __future__ import annotations

from typing import Any

from bench.sampled import PLOTTED, _outcome, _plot
from latencyprobe.domain.histogram import EMPTY, Histogram

ALL = [1_000] * 50 + [20_000] * 48 + [900_000] * 2


def figures(of_all: list[list[int]], sampled: list[list[int]]) -> dict[int, dict[str, Any]]:
    """What is found of one stage, by percentile; a list for each slice of time."""
    both = ([{PLOTTED: Histogram.of(each)} for each in slices] for slices in (of_all, sampled))
    first, second = both
    document = _outcome(first, second, foreign=0).document
    found = (each for each in document["percentiles"] if each["stage"] == PLOTTED)
    return {each["percentile"]: each for each in found}


def test_samples_of_the_same_load_have_its_percentiles() -> None:
    found = figures([16 * ALL], [ALL])
    assert {percent: each["buckets"] for percent, each in found.items()} == {50: 0, 90: 0, 99: 0}
    assert all(each["met"] for each in found.values())


def test_a_percentile_two_buckets_away_misses_the_target() -> None:
    found = figures([ALL], [[1_000] * 50 + [25_000] * 48 + [900_000] * 2])
    assert found[90]["buckets"] > 1
    assert {percent: each["met"] for percent, each in found.items()} == {
        50: True,
        90: False,
        99: True,
    }


def test_a_slice_in_which_the_machine_halted_does_not_decide() -> None:
    found = figures([ALL] * 3, [ALL, ALL + [90_000_000] * 50, ALL])
    assert all(each["met"] for each in found.values())


def test_the_plot_has_a_bar_of_both_for_each_bucket_with_packets() -> None:
    title, *lines = _plot(Histogram.of(ALL), Histogram.of([1_000, 20_000])).splitlines()
    assert title == f"{PLOTTED}: 100 packets of all, 2 of 1 in 16"
    assert [line.count("#") for line in lines] == [48, 48, 46, 48, 2, 0]
    assert _plot(EMPTY, EMPTY).splitlines() == [f"{PLOTTED}: 0 packets of all, 0 of 1 in 16"]
