"""Unobserved time: gaps between a node's reports, restarts, and what the agent states."""

from __future__ import annotations

import pytest

from latencyprobe_operator.observed_state import ReportSource, Span
from latencyprobe_operator.probes.unobserved import (
    ALL_OBSERVED,
    UNKNOWN_AGE,
    ObservedTime,
    Unobserved,
    WindowAge,
)

WINDOW_S = 60.0


def note(
    observed: ObservedTime,
    begin: float,
    end: float,
    *,
    instance: str = "first",
    stream: int = 1,
    stated_s: float = 0.0,
    at: float | None = None,
    age: WindowAge = UNKNOWN_AGE,
    wanted_s: float = 0.0,
) -> Unobserved:
    """Note a report of this span, which arrives at its end; return what is unobserved then."""
    observed.note(
        Span(begin, end),
        ReportSource(instance, stream),
        stated_s=stated_s,
        window_s=WINDOW_S,
        at=end if at is None else at,
        age=age,
        wanted_s=lambda: wanted_s,
    )
    return observed.unobserved(WINDOW_S)


def test_reports_without_a_gap_observe_all() -> None:
    observed = ObservedTime()
    assert not observed.unobserved(WINDOW_S)
    for begin in range(0, 100, 10):
        assert not note(observed, begin + 0.01, begin + 10)


def test_a_gap_counts_until_it_has_left_the_window() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    found = note(observed, 16, 26)
    assert str(found) == "6s of the window were not observed: no report covers them"
    seconds = [note(observed, at, at + 10).seconds for at in range(26, 76, 10)]
    assert seconds == [6, 6, 6, 6, 0]


def test_a_gap_that_is_partly_in_the_window_counts_in_part() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    note(observed, 40, 50)
    assert note(observed, 50, 80).seconds == 20


def test_a_restart_loses_the_window_that_the_agent_had() -> None:
    observed = ObservedTime()
    for begin in range(0, 50, 10):
        note(observed, begin, begin + 10)
    found = note(observed, 53, 63, instance="second", stream=2)
    assert found == Unobserved(50, "the agent was restarted")
    seconds = [
        note(observed, at, at + 10, instance="second", stream=2).seconds
        for at in range(63, 113, 10)
    ]
    assert seconds == [40, 30, 20, 10, 0]


def test_a_restart_loses_no_more_than_the_time_that_is_known() -> None:
    observed = ObservedTime()
    note(observed, 100, 110)
    assert note(observed, 122, 132, instance="second", stream=2).seconds == 22
    # Twice in a window: what the first restart has lost counts once.
    assert note(observed, 135, 145, instance="third", stream=3).seconds == 35


def test_a_lost_connection_alone_is_no_gap() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    assert not note(observed, 40, 50, stream=2)


def test_a_gap_that_the_agent_states_counts_and_not_twice() -> None:
    observed = ObservedTime()
    assert note(observed, 0, 10, stated_s=5).seconds == 5
    assert note(observed, 16, 26, stated_s=6).seconds == 6
    found = note(observed, 26, 36, stated_s=20)
    assert found == Unobserved(20, "the agent did not measure")


def test_nothing_exceeds_the_window_even_if_a_node_reports_more() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    assert note(observed, 1e15, 1e15 + 1).seconds <= WINDOW_S
    assert note(observed, -1e15, -1e15 + 1, stated_s=1e9).seconds == WINDOW_S


def test_an_agents_clock_that_is_set_makes_no_gap() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    for interval, jump in enumerate((3600, 7200, -3600, 0), 1):
        begin = 10 * interval + jump
        assert not note(observed, begin, begin + 10, at=10 * interval + 10.3)


def test_a_gap_is_not_reported_while_an_agents_clock_is_set_back() -> None:
    observed = ObservedTime()
    note(observed, 7200, 7210, at=10)
    assert note(observed, 7222, 7232, at=32)
    for at in range(42, 62, 10):
        assert not note(observed, at + 3590, at + 3600, at=at)
    # A restart then loses what is known by the new time.
    assert note(observed, 3665, 3675, instance="second", stream=2, at=75).seconds == 33


def test_a_gap_is_no_longer_than_the_operator_has_waited() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    assert note(observed, 3610, 3620, at=35).seconds == 15


def test_gaps_between_contradictory_times_take_a_bounded_memory() -> None:
    observed = ObservedTime()
    for number in range(10_000):
        # It begins after its end, so that it never leaves the window.
        note(observed, 1e9, 0, at=float(number))

    assert len(observed._gaps) <= 64
    assert observed.unobserved(WINDOW_S).seconds <= WINDOW_S


def test_many_gaps_within_a_long_window_keep_their_sum() -> None:
    observed = ObservedTime()
    for number in range(200):
        observed.note(
            Span(number * 2 + 1, number * 2 + 2),
            ReportSource("first", 1),
            stated_s=0,
            window_s=3600,
            at=number * 2 + 2,
        )

    assert observed.unobserved(3600).seconds == 199


@pytest.mark.parametrize(
    ("age", "wanted_s", "seconds"),
    [
        (WindowAge(10, of_first_state=True), 3600, 50),
        (WindowAge(25, of_first_state=True), 3600, 35),
        (WindowAge(25, of_first_state=True), 40, 15),
        (WindowAge(25, of_first_state=True), 26, 0),  # the clocks of two nodes
        (WindowAge(25, of_first_state=True), 10, 0),
        (WindowAge(60, of_first_state=True), 3600, 0),
        (WindowAge(3600, of_first_state=True), 3600, 0),
        (WindowAge(10, of_first_state=False), 3600, 0),  # the probe is new to the node
        (UNKNOWN_AGE, 3600, 0),  # an older agent
    ],
)
def test_a_new_operator_misses_what_an_agent_before_would_have_measured(
    age: WindowAge, wanted_s: float, seconds: int
) -> None:
    observed = ObservedTime()
    found = note(observed, 1e9, 1e9 + 10, at=7, age=age, wanted_s=wanted_s)
    reason = "the agent has no figures of before"
    assert found == (Unobserved(seconds, reason) if seconds else ALL_OBSERVED)


def test_a_window_that_was_lost_before_a_failover_leaves_in_time() -> None:
    observed = ObservedTime()
    seconds = [
        note(
            observed,
            at,
            at + 10,
            age=WindowAge(at + 10, of_first_state=True),
            wanted_s=3600,
        ).seconds
        for at in range(0, 70, 10)
    ]
    assert seconds == [50, 40, 30, 20, 10, 0, 0]


def test_a_restart_under_the_same_operator_loses_the_longer_of_both() -> None:
    for wanted_s, seconds in ((3600, 50), (13, 13)):
        observed = ObservedTime()
        note(observed, 100, 110)
        age = WindowAge(10, of_first_state=True)
        found = note(observed, 113, 123, instance="second", stream=2, age=age, wanted_s=wanted_s)
        assert found.seconds == seconds


def test_a_first_report_that_was_missed_after_a_restart_is_no_loss() -> None:
    observed = ObservedTime()
    note(observed, 100, 110)
    age = WindowAge(30, of_first_state=True)
    found = note(observed, 135, 145, instance="second", stream=2, age=age, wanted_s=40)
    assert found.seconds == 15


def test_the_time_to_attach_after_a_restart_is_added_to_the_lost_window() -> None:
    observed = ObservedTime()
    age = WindowAge(20, of_first_state=True)
    assert note(observed, 100, 110, stated_s=5, age=age, wanted_s=3600).seconds == 45
