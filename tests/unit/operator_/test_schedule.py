"""When a status is due: from reports, the interval and the time alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe_operator.probes.schedule import StatusSchedule, pause_s

INTERVAL_S = 10.0


def started(*, nodes: int, at: float = 0.0) -> StatusSchedule:
    """A schedule of a probe on so many nodes, whose figures were taken at this time."""
    schedule = StatusSchedule()
    schedule.nodes = nodes
    schedule.mark_figures(at)
    return schedule


def due(schedule: StatusSchedule, *, idle: bool = False) -> float:
    """When figures are due."""
    return schedule.figures_due(INTERVAL_S, idle=idle)


def test_the_first_figures_are_due_at_once() -> None:
    assert due(StatusSchedule()) < 0


def test_without_reports_figures_are_due_after_an_interval_and_a_half() -> None:
    assert due(started(nodes=2)) == 15


def test_figures_of_all_nodes_are_due_an_interval_after_the_last() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 3)

    assert due(schedule) == pytest.approx(9.7)


def test_late_figures_of_all_nodes_are_due_with_the_first_report() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 12)

    assert due(schedule) == 12


def test_a_node_that_is_late_is_waited_for_a_moment() -> None:
    schedule = started(nodes=2)
    schedule.take_report("a", 12)
    assert due(schedule) == 12.5
    schedule.take_report("b", 12.2)

    assert due(schedule) == 12


def test_the_moment_is_a_part_of_a_short_interval() -> None:
    schedule = started(nodes=2)
    schedule.take_report("a", 2)

    assert schedule.figures_due(1, idle=False) == 2.1


def test_an_idle_probe_is_checked_seldom() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 12)

    assert due(schedule, idle=True) == 600


def test_the_first_report_and_that_of_the_last_node_count() -> None:
    schedule = started(nodes=3)

    assert [schedule.take_report(node, 1) for node in "aabc"] == [True, False, False, True]


def test_reports_before_the_last_figures_do_not_count() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 3)
    schedule.mark_figures(10)

    assert due(schedule) == 25
    assert schedule.take_report("a", 13)


def test_figures_of_a_failed_write_are_due_again_soon() -> None:
    schedule = started(nodes=1)
    schedule.mark_figures(10)
    schedule.mark_failed(11)

    assert due(schedule) == 11.5


def test_a_failed_write_keeps_the_time_of_the_report() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 3)
    schedule.mark_failed(11)

    assert due(schedule) == 3


def test_a_probe_that_measures_no_more_expects_its_first_report_again() -> None:
    schedule = started(nodes=1)
    schedule.take_report("a", 3)
    schedule.forget_reports()

    assert due(schedule) == 15
    assert schedule.take_report("a", 4)


def next_check(
    schedule: StatusSchedule,
    now: float,
    *,
    reported: bool = False,
    remaining_s: float | None = None,
) -> float:
    """When a probe that measures is checked next."""
    return schedule.next_check(
        now, INTERVAL_S, idle=False, reported=reported, remaining_s=remaining_s
    )


def test_the_status_of_an_earlier_operator_stands_for_an_interval_and_some_seconds() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, INTERVAL_S)

    assert schedule.in_grace(114.9)
    assert not schedule.in_grace(115)
    assert next_check(schedule, 100) == 115
    assert next_check(schedule, 115) < 0


def test_the_status_stands_until_the_operator_connects_to_agents_but_not_for_ever() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, None)

    assert next_check(schedule, 100) == 400
    assert not schedule.in_grace(400)
    schedule.grant_grace(120, INTERVAL_S)
    assert next_check(schedule, 120) == 135


def test_the_grace_is_prolonged_while_agents_attach_and_counts_from_then_on() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, INTERVAL_S)
    answers = iter((True, True, False, False))
    for now in (115, 125, 138, 145):
        schedule.prolong_grace(now, INTERVAL_S, attaching=lambda: next(answers))

    assert next_check(schedule, 145) == 138 + 15


def test_the_grace_of_agents_that_never_attach_ends() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, INTERVAL_S)
    for now in range(100, 300, 10):
        schedule.prolong_grace(now, INTERVAL_S, attaching=lambda: True)

    assert schedule.in_grace(219.9)
    assert not schedule.in_grace(220)


def test_a_long_interval_is_waited_for_in_full() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, 600)
    schedule.prolong_grace(700, 600, attaching=lambda: True)

    assert schedule.in_grace(704.9)
    assert not schedule.in_grace(705)


def test_a_grace_that_has_ended_is_not_prolonged() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, INTERVAL_S)
    schedule.end_grace()
    schedule.prolong_grace(101, INTERVAL_S, attaching=lambda: True)

    assert not schedule.in_grace(101)


def test_a_report_ends_the_wait_for_the_end_of_grace() -> None:
    schedule = StatusSchedule()
    schedule.grant_grace(100, INTERVAL_S)
    schedule.take_report("a", 102)

    assert next_check(schedule, 102, reported=True) == 102


def test_the_end_of_a_probe_is_not_missed() -> None:
    schedule = started(nodes=1)

    assert next_check(schedule, 5) == 15
    assert next_check(schedule, 5, remaining_s=3) == 8
    assert next_check(schedule, 5, remaining_s=60) == 15


@pytest.mark.parametrize(
    ("last_write", "pause"), [(None, 0.1), (99.5, 0.5), (99.95, 0.95), (98, 0.1)]
)
def test_writes_are_a_second_apart(last_write: float | None, pause: float) -> None:
    assert pause_s(100, last_write) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("last_check", "due", "pause"),
    [(99.5, 200, 0.5), (98, 200, 0.1), (99.5, 100.2, 0.2), (99.5, 90, 0.1), (99.5, 100.8, 0.5)],
)
def test_checks_are_a_second_apart_until_figures_are_due(
    last_check: float, due: float, pause: float
) -> None:
    assert pause_s(100, 90, last_check=last_check, due=due) == pytest.approx(pause)
    assert pause_s(100, None, last_check=last_check, due=due) == pytest.approx(pause)
    assert pause_s(100, 99.9, last_check=last_check, due=due) == pytest.approx(0.9)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100)), max_size=20),
)
def test_figures_are_never_due_within_an_interval_of_the_last(
    nodes: int, reports: list[tuple[str, float]]
) -> None:
    schedule = started(nodes=nodes, at=50)
    for node, at in sorted(reports, key=lambda each: each[1]):
        schedule.take_report(node, 50 + at)

    assert due(schedule) >= 50 + 0.97 * INTERVAL_S
