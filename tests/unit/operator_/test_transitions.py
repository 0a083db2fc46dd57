"""Transitions are changes that last, and make few Events."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.causes import Bottleneck
from latencyprobe_operator.api.events import EventReason, Transition
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.probes.event_book import MOST_EVENTS, PERIOD_S, EventBook
from latencyprobe_operator.probes.facts import NodeFacts
from latencyprobe_operator.probes.objectives import Judgement, ObjectiveOutcome
from latencyprobe_operator.probes.transitions import NodesWatch, ObjectivesHistory, VerdictWatch

WINDOW_S = 60.0
MET, MISSED, UNKNOWN = ObjectiveOutcome.MET, ObjectiveOutcome.MISSED, ObjectiveOutcome.UNKNOWN


def summary(verdict: str) -> dict[str, Any]:
    """A summary with this verdict."""
    return {"bottleneck": verdict, "message": "rx.socket holds 98 %"}


# ---------------------------------------------------------------------------------- verdicts


def test_a_verdict_that_has_changed_and_stayed_for_two_windows_is_reported_once() -> None:
    watch = VerdictWatch({"summary": summary("None")})
    seen = {
        at: found
        for at in range(0, 600, 10)
        if (found := list(watch.observe(summary("SlowReader"), WINDOW_S, at=at)))
    }

    assert list(seen) == [2 * WINDOW_S]
    ((transition,),) = seen.values()
    assert transition.reason is EventReason.VERDICT_CHANGED
    assert transition.note == "the verdict is SlowReader, before None: rx.socket holds 98 %"
    assert transition.is_warning
    healed = [
        each
        for at in range(600, 900, 10)
        for each in watch.observe(summary("None"), WINDOW_S, at=at)
    ]
    assert [each.is_warning for each in healed] == [False]


@pytest.mark.parametrize("between", ["None", "HostPath", "InsufficientData", None])
def test_a_verdict_that_comes_and_goes_is_not_reported(between: str | None) -> None:
    watch = VerdictWatch({"summary": summary("None")})
    found = []
    for at in range(0, 3600, 10):
        verdict = between if at % 110 == 100 else "SlowReader"
        found += list(watch.observe({"bottleneck": verdict}, WINDOW_S, at=at))

    assert found == []


@pytest.mark.parametrize("rest", ["InsufficientData", None])
def test_a_verdict_that_returns_after_a_rest_is_no_change(rest: str | None) -> None:
    watch = VerdictWatch({"summary": summary("SlowReader")})
    verdicts = [*([rest] * 60), *(["SlowReader"] * 60)]

    found = [
        each
        for number, verdict in enumerate(verdicts)
        for each in watch.observe({"bottleneck": verdict}, WINDOW_S, at=10.0 * number)
    ]
    assert found == []


def test_a_healthy_probe_begins_without_an_event_and_a_sick_one_with_one() -> None:
    for verdict, count in (("None", 0), ("SlowReader", 1)):
        watch = VerdictWatch({})
        found = [
            each
            for at in range(0, 600, 10)
            for each in watch.observe(summary(verdict), WINDOW_S, at=at)
        ]
        assert len(found) == count


def test_after_insufficient_data_a_healthy_probe_makes_no_event() -> None:
    watch = VerdictWatch({"summary": summary("InsufficientData")})

    found = [
        each for at in range(0, 600, 10) for each in watch.observe(summary("None"), WINDOW_S, at=at)
    ]
    assert found == []


def test_the_time_of_a_suspension_does_not_count() -> None:
    verdicts, nodes = VerdictWatch({"summary": summary("None")}), NodesWatch({"phase": "Running"})
    assert list(verdicts.observe(summary("SlowReader"), WINDOW_S, at=0)) == []
    assert list(nodes.observe([node(NodeState.UNREACHABLE)], at=0)) == []
    verdicts.pause()
    nodes.pause()

    assert list(verdicts.observe(summary("SlowReader"), WINDOW_S, at=3600)) == []
    assert list(nodes.observe([node(NodeState.UNREACHABLE)], at=3600)) == []
    assert len(list(verdicts.observe(summary("SlowReader"), WINDOW_S, at=3720))) == 1
    assert len(list(nodes.observe([node(NodeState.UNREACHABLE)], at=3720))) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from([None, *map(str, Bottleneck)]), st.integers(1, 300)), max_size=40
    )
)
def test_only_verdicts_of_two_windows_are_reported(steps: list[tuple[str | None, int]]) -> None:
    watch, at, since = VerdictWatch({}), 0.0, 0.0
    reported: list[str] = []
    before: str | None = None
    for verdict, length_s in steps:
        since = since if verdict == before else at
        before = verdict
        for _ in range(length_s):
            for each in watch.observe({"bottleneck": verdict}, WINDOW_S, at=at):
                assert at - since >= 2 * WINDOW_S
                assert each.subject == verdict != "InsufficientData"
                reported.append(each.subject)
            at += 1
    assert all(one != other for one, other in itertools.pairwise(reported))


# -------------------------------------------------------------------------------- objectives


def judged(**outcomes: ObjectiveOutcome) -> list[Judgement]:
    """These outcomes by the names of their objectives."""
    return [
        Judgement(outcome, f"{name}: p99 of rx.total is 7ms, at most 5ms")
        for name, outcome in outcomes.items()
    ]


def test_an_objective_is_reported_when_it_is_missed_and_when_it_is_met_again() -> None:
    history = ObjectivesHistory({})
    steps = [
        judged(reads=MET, writes=MET),
        judged(reads=MISSED, writes=MET),
        judged(reads=MISSED, writes=MISSED),
        judged(reads=UNKNOWN, writes=MISSED),
        judged(reads=MET, writes=MISSED),
    ]
    found = [[(each.reason, each.subject) for each in history.observe(step)] for step in steps]

    missed, met = EventReason.OBJECTIVE_MISSED, EventReason.OBJECTIVE_MET
    assert found == [[], [(missed, "reads")], [(missed, "writes")], [], [(met, "reads")]]


def test_another_operator_reports_no_objective_again() -> None:
    message = "; ".join(each.message for each in judged(reads=MISSED, writes=MISSED))
    condition = {"type": "ObjectivesMet", "status": "False", "message": message}
    history = ObjectivesHistory({"conditions": [condition]})

    assert list(history.observe(judged(reads=MISSED, writes=MISSED))) == []
    (met,) = history.observe(judged(reads=MISSED, writes=MET))
    assert met.note == "met again: writes: p99 of rx.total is 7ms, at most 5ms"


# ------------------------------------------------------------------------------------- nodes


def node(state: NodeState, name: str = "node-a") -> NodeFacts:
    """A node in this state."""
    return NodeFacts(name, state, "connection refused")


def test_a_node_is_lost_once_it_has_not_measured_for_a_while_and_is_back_when_it_does() -> None:
    watch = NodesWatch({})
    timeline = [
        *((at, NodeState.READY) for at in range(0, 10, 1)),
        *((at, NodeState.UNREACHABLE) for at in range(10, 60, 1)),
        *((at, NodeState.CONNECTING) for at in range(60, 70, 1)),
        *((at, NodeState.PARTIAL) for at in range(70, 90, 1)),
    ]
    found = {
        each.reason: (at, each.note)
        for at, state in timeline
        for each in watch.observe([node(state)], at=at)
    }

    assert found == {
        EventReason.NODE_LOST: (30, "node node-a does not measure any more: connection refused"),
        EventReason.NODE_BACK: (70, "node node-a measures again"),
    }


def test_an_agent_that_restarts_and_a_node_without_pods_are_not_lost() -> None:
    watch = NodesWatch({})
    list(watch.observe([node(NodeState.READY)], at=0))
    assert list(watch.observe([node(NodeState.UNREACHABLE)], at=1)) == []
    assert list(watch.observe([node(NodeState.READY)], at=15)) == []
    assert list(watch.observe([node(NodeState.UNREACHABLE)], at=16)) == []
    assert list(watch.observe([], at=30)) == []
    assert list(watch.observe([node(NodeState.UNREACHABLE)], at=31)) == []
    assert list(watch.observe([node(NodeState.UNREACHABLE)], at=90)) == []


def test_a_node_that_never_measured_is_not_lost() -> None:
    watch = NodesWatch({})

    assert not [
        each for at in range(100) for each in watch.observe([node(NodeState.NO_AGENT)], at=at)
    ]


def test_another_operator_goes_on_with_the_nodes_of_the_status() -> None:
    row = {"name": "node-a", "state": "Unreachable"}
    knows = NodesWatch({"phase": "Degraded", "nodes": [row]})
    assert list(knows.observe([node(NodeState.UNREACHABLE)], at=0)) == []
    assert list(knows.observe([node(NodeState.UNREACHABLE)], at=100)) == []
    (back,) = knows.observe([node(NodeState.READY)], at=101)
    assert back.reason is EventReason.NODE_BACK

    learns = NodesWatch({"phase": "Running"})
    assert list(learns.observe([node(NodeState.CONNECTING)], at=0)) == []
    assert list(learns.observe([node(NodeState.UNREACHABLE)], at=10)) == []
    (lost,) = learns.observe([node(NodeState.UNREACHABLE)], at=40)
    assert lost.reason is EventReason.NODE_LOST


# ---------------------------------------------------------------------------------- the book


def transition(number: int, reason: EventReason = EventReason.NODE_LOST) -> Transition:
    """A transition of one of many subjects."""
    return Transition(reason=reason, subject=str(number), note="n", is_warning=True)


def play(book: EventBook, steps: list[tuple[float, Transition]]) -> Counter[str]:
    """Note these transitions, and write what is due each second; the last count by name."""
    counts: dict[str, int] = {}
    pending = list(steps)
    for second in range(int(max(at for at, _ in steps)) + 100):
        while pending and pending[0][0] <= second:
            at, found = pending.pop(0)
            book.note(found, at=at, wall=at)
        for entry in book.due(second):
            name = entry.name or f"event-{len(counts)}"
            counts[name] = entry.series.count
            book.mark_written(entry, name=name, count=entry.series.count, at=second)
    return Counter(counts)


@pytest.mark.parametrize("subjects", [1, 2, 100])
def test_100_flips_in_10_minutes_make_at_most_5_objects_and_all_are_counted(
    subjects: int,
) -> None:
    book = EventBook()
    flips = [
        (
            6.0 * number,
            transition(
                number // 2 % subjects,
                EventReason.NODE_BACK if number % 2 else EventReason.NODE_LOST,
            ),
        )
        for number in range(100)
    ]
    counts = play(book, flips)

    assert len(counts) == min(2 * subjects, MOST_EVENTS)
    assert counts.total() + book.omitted == len(flips)


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 8), st.sampled_from(list(EventReason))),
        min_size=1,
        max_size=120,
    )
)
def test_no_period_has_more_objects_and_no_transition_is_uncounted(
    steps: list[tuple[int, int, EventReason]],
) -> None:
    book = EventBook()
    created: list[int] = []
    counts: dict[str, int] = {}
    for at, number, reason in sorted(steps, key=lambda step: step[0]):
        book.note(transition(number, reason), at=at, wall=at)
        for entry in book.due(at):
            name = entry.name or f"event-{len(counts)}"
            created += [] if entry.name else [at]
            counts[name] = entry.series.count
            book.mark_written(entry, name=name, count=entry.series.count, at=at)
    for entry in book.due(10**6):
        counts[entry.name] = entry.series.count

    for begin in created:
        assert sum(begin <= at < begin + PERIOD_S for at in created) <= MOST_EVENTS
    assert sum(counts.values()) + book.omitted == len(steps)


def test_a_series_is_written_once_a_minute_at_most() -> None:
    book, writes = EventBook(), []
    for at in range(600):
        book.note(transition(1), at=at, wall=at)
        for entry in book.due(at):
            writes.append(at)
            book.mark_written(entry, name="event", count=entry.series.count, at=at)

    assert writes == list(range(0, 600, 60))


def test_an_event_that_the_api_server_has_deleted_is_made_again() -> None:
    book = EventBook()
    book.note(transition(1), at=0, wall=0)
    (entry,) = book.due(0)
    book.mark_written(entry, name="event", count=1, at=0)
    book.note(transition(1), at=3600, wall=3600)
    (again,) = book.due(3600)

    assert (again.name, again.series.count) == ("", 1)
