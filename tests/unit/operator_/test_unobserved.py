"""Unobserved time: gaps between a node's reports, restarts, and what the agent states."""

from __future__ import annotations

from latencyprobe_operator.observed_state import ReportSource, Span
from latencyprobe_operator.probes.unobserved import ObservedTime, Unobserved

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
) -> Unobserved:
    """Note a report of this span, which arrives at its end; return what is unobserved then."""
    observed.note(
        Span(begin, end),
        ReportSource(instance, stream),
        stated_s=stated_s,
        window_s=WINDOW_S,
        at=end if at is None else at,
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


def test_a_restart_is_a_gap_with_its_reason() -> None:
    observed = ObservedTime()
    note(observed, 0, 10)
    found = note(observed, 22, 32, instance="second", stream=2)
    assert found == Unobserved(12, "the agent was restarted")


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
