"""How long a node has been silent, and how that is told."""

from __future__ import annotations

import pytest

from latencyprobe_operator.probes.staleness import ReportTimes, Staleness, age_text, patience_s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0s"), (7.9, "7s"), (19, "10s"), (59, "50s"), (60, "1m"), (599, "9m")],
        *[(660, "10m"), (3599, "50m"), (3600, "1h"), (90_000, "25h")],
    ],
)
def test_an_age_is_reported_again_ever_more_seldom(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_staleness_counts_from_the_last_report() -> None:
    report_times = ReportTimes()
    report_times.staleness("a", is_due=True, at=100)
    report_times.note("a", at=110, wall=1000)

    assert report_times.staleness("a", is_due=True, at=125) == Staleness(15, 1000, 15)


def test_staleness_without_any_report_counts_from_the_time_of_the_first() -> None:
    report_times = ReportTimes()
    report_times.staleness("a", is_due=True, at=100)

    assert report_times.staleness("a", is_due=True, at=125) == Staleness(25, None, 0)


def test_an_agent_that_was_away_is_due_again_when_it_returns() -> None:
    report_times = ReportTimes()
    report_times.note("a", at=0, wall=1000)
    assert report_times.staleness("a", is_due=False, at=200) == Staleness(0, 1000, 200)

    assert report_times.staleness("a", is_due=True, at=300) == Staleness(0, 1000, 300)
    assert report_times.staleness("a", is_due=True, at=305) == Staleness(5, 1000, 305)


def test_nodes_without_pods_of_the_probe_are_forgotten() -> None:
    report_times = ReportTimes()
    for node in ("a", "b"):
        report_times.note(node, at=0, wall=1000)
    report_times.keep({"b"})

    assert report_times.staleness("a", is_due=False, at=1).last_report is None
    assert report_times.staleness("b", is_due=False, at=1).last_report == 1000


def test_patience_grows_with_the_interval() -> None:
    assert (patience_s(1), patience_s(10), patience_s(600)) == (12, 30, 1210)
