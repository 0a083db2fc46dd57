"""Missing answers and answers that are not due: by the past of connections, in pure values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.measurement import NOTHING, Measurement, across_pods, of_one_pod
from latencyprobe.domain.packets import Endpoint
from latencyprobe.domain.patience import (
    ANSWERS_OF_A_PAST,
    FIRST_ANSWERS,
    FIRST_REQUESTS,
    HELD_PATIENCE_NS,
    LEAST_PATIENCE_NS,
    MAX_REPORTED_PEERS,
    MISSING_ANSWERS,
    PATIENCE_STEPS,
    STUCK_REQUESTS,
    Peer,
    PeerTurns,
    Role,
    Waits,
    describe_peer,
    first_step,
    joint_peers,
    patience_ns,
    waiting_peers,
    waits_by_others,
)
from latencyprobe.domain.pending import LONGEST_PENDING_NS, Pending
from latencyprobe.domain.report import report_on
from latencyprobe.domain.serialisation import document_of
from latencyprobe.domain.stages import DEFAULT_MODULES, Module
from latencyprobe_agent.collector import only
from tests.unit.peer_figures import peers

SECOND = 10**9
SERVICE = Endpoint(ip_address("10.0.0.7"), 7000)
OTHER = Endpoint(ip_address("2001:db8::7"), 80)


@dataclass(frozen=True)
class Connection:
    """One connection: the durations of its answers, and how old a waiting request is (0: none)."""

    answers_s: Sequence[float] = ()
    waits_s: float = 0.0

    @property
    def answers(self) -> int:
        return min(len(self.answers_s), 15)

    @property
    def slowest_ns(self) -> int:
        return round(max(self.answers_s, default=0) * SECOND)

    @property
    def age_ns(self) -> int:
        return round(self.waits_s * SECOND)

    @property
    def is_late(self) -> bool:
        """As find_turn() in bpf/modules/peers.bpf.c has it."""
        has_past = self.answers >= ANSWERS_OF_A_PAST
        return has_past and self.age_ns > patience_ns(self.slowest_ns)


def waits_of(connections: Sequence[Connection]) -> Waits:
    ages = [each.age_ns for each in connections if each.age_ns]
    return Waits(len(ages), max(ages, default=0), sum(ages))


def turns_of(
    *connections: Connection, role: Role = Role.CLIENT, peer: Endpoint | None = SERVICE
) -> PeerTurns:
    """What a reading has of the connections to one peer."""
    first = [each for each in connections if each.age_ns and not each.answers]
    steps = []
    for step in range(PATIENCE_STEPS):
        ages = [each.age_ns for each in first if each.age_ns >= LEAST_PATIENCE_NS << step]
        steps.append((len(ages), sum(ages)))
    return PeerTurns(
        role=role,
        peer=peer if role is Role.CLIENT else None,
        answered=sum(each.answers > 0 for each in connections),
        answers=sum(each.answers for each in connections),
        slowest_ns=max((each.slowest_ns for each in connections), default=0),
        waiting=waits_of(connections),
        late=waits_of([each for each in connections if each.is_late]),
        first=waits_of(first),
        first_from=tuple(steps),
    )


def said_of(*connections: Connection, role: Role = Role.CLIENT) -> dict[str, int]:
    """The numbers of requests by kind, as they are reported."""
    turns = turns_of(*connections, role=role)
    late = MISSING_ANSWERS if role is Role.CLIENT else STUCK_REQUESTS
    by_others = {kind: each.count for kind, each in waits_by_others([turns]).items()}
    by_others[late] = by_others.get(late, 0) + turns.late.count
    return {kind: count for kind, count in by_others.items() if count}


QUICK = (0.002,) * ANSWERS_OF_A_PAST
LONG_POLL = (1.5, 1.5)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    ("connections", "said"),
    [
        pytest.param([Connection(QUICK)] * 10, {}, id="an idle pool"),
        pytest.param([Connection(QUICK, 0.9)], {}, id="within the first second"),
        pytest.param([Connection(QUICK, 1.1)], {"late": 1}, id="a quick peer is silent"),
        pytest.param([Connection((0.3,) * 3, 2.9)], {}, id="not ten times as long"),
        pytest.param([Connection((0.3,) * 3, 3.1)], {"late": 1}, id="over ten times as long"),
        pytest.param([Connection(LONG_POLL, 30)] * 10, {}, id="a long poll of 30 s after two"),
        pytest.param(
            [Connection((*LONG_POLL, *QUICK), 30)], {}, id="a long poll of 30 s after many answers"
        ),
        pytest.param(
            [Connection((*LONG_POLL, *QUICK), 61)], {"late": 1}, id="no poll is as long as this"
        ),
        pytest.param([Connection((9, 9, 9), 89)], {}, id="slow work"),
        pytest.param([Connection((0.001,), 600)], {}, id="a subscription after its confirmation"),
        pytest.param([Connection((0.001,) * 2, 600)], {}, id="two answers are no past"),
        pytest.param(
            [Connection(QUICK, 0.001)] * 45 + [Connection((), 5)] * 15,
            {"late": 15},
            id="one of four workers hangs",
        ),
        pytest.param(
            [Connection(QUICK)] * 3 + [Connection((), 5), Connection((), 0.5)],
            {"late": 1},
            id="others' past takes a second, too",
        ),
        pytest.param(
            [Connection((0.5,) * 3), Connection((), 7), Connection((), 9)],
            {"late": 1},
            id="others' patience is rounded up: 5 s to 8 s",
        ),
        pytest.param(
            [Connection((1.5,) * 3), Connection((), 63)], {}, id="others hold their answers back"
        ),
        pytest.param(
            [Connection((1.5,) * 3), Connection((), 65)], {"late": 1}, id="others held none so long"
        ),
        pytest.param([Connection((70.0,) * 3), Connection((), 600)], {}, id="beyond all ages"),
        pytest.param([Connection((), 5)] * 20, {"first": 20}, id="no answer so far"),
        pytest.param([Connection((), 0.5)], {}, id="the first one may still come"),
        pytest.param([Connection((0.01,)), Connection((), 50)], {}, id="an answer is no past"),
    ],
)
def test_a_request_is_late_by_earlier_answers_on_its_connections(
    role: Role, connections: list[Connection], said: dict[str, int]
) -> None:
    late, first = (
        (MISSING_ANSWERS, FIRST_ANSWERS)
        if role is Role.CLIENT
        else (STUCK_REQUESTS, FIRST_REQUESTS)
    )
    names = {"late": late, "first": first}
    assert said_of(*connections, role=role) == {names[key]: n for key, n in said.items()}


durations = st.floats(0.001, 100)
ages = st.floats(0, LONGEST_PENDING_NS / SECOND)
connections = st.builds(Connection, st.lists(durations, max_size=6).map(tuple), ages)


@given(st.lists(connections, max_size=12))
def test_no_request_is_late_within_a_second_or_ten_times_the_slowest_answer(
    made: list[Connection],
) -> None:
    """The most that is ever claimed, whatever the connections are."""
    slowest_ns = max((each.slowest_ns for each in made), default=0)
    claimable = [
        each
        for each in made
        if each.age_ns > LEAST_PATIENCE_NS
        and each.age_ns > 10 * (each.slowest_ns if each.answers else slowest_ns)
    ]
    said = said_of(*made)
    assert said.get(MISSING_ANSWERS, 0) <= len(claimable)
    assert sum(said.values()) <= sum(each.age_ns > 0 for each in made)


@given(st.lists(st.builds(Connection, st.lists(durations, max_size=6).map(tuple)), max_size=12))
def test_connections_without_a_waiting_request_are_never_late(made: list[Connection]) -> None:
    assert said_of(*made) == {}


@given(st.lists(connections, max_size=12))
def test_once_a_peer_has_answered_no_request_waits_for_its_first_answer(
    made: list[Connection],
) -> None:
    assert FIRST_ANSWERS not in said_of(*made, Connection((0.01,)))


@given(st.integers(0, LONGEST_PENDING_NS))
def test_patience_grows_with_the_slowest_answer(slowest_ns: int) -> None:
    assert patience_ns(slowest_ns) >= max(LEAST_PATIENCE_NS, 10 * slowest_ns)
    assert patience_ns(slowest_ns) <= patience_ns(slowest_ns + 1)
    step = first_step(patience_ns(slowest_ns))
    assert step == PATIENCE_STEPS or LEAST_PATIENCE_NS << step >= patience_ns(slowest_ns)
    assert not step or LEAST_PATIENCE_NS << (step - 1) < patience_ns(slowest_ns)


def test_answers_that_are_held_back_make_patience_of_a_minute() -> None:
    assert patience_ns(SECOND - 1) < 10 * SECOND
    assert patience_ns(SECOND) == HELD_PATIENCE_NS == 60 * SECOND


def test_an_earlier_past_counts_for_connections_that_are_new() -> None:
    past = turns_of(Connection(QUICK))
    now = turns_of(Connection((), 5)).after(past)
    assert waits_by_others([now]) == {
        MISSING_ANSWERS: Pending(1, 1, oldest_ns=5 * SECOND, waiting_ns=5 * SECOND)
    }


def test_peers_are_named_the_surest_kind_and_the_longest_waiting_first() -> None:
    hung = turns_of(Connection(QUICK, 5), Connection((), 6))
    silent = turns_of(Connection((), 500), peer=OTHER)
    healthy = turns_of(Connection(QUICK, 0.5), peer=Endpoint(ip_address("10.0.0.8"), 1))
    port = turns_of(Connection(QUICK, 50), role=Role.SERVER)
    assert waiting_peers([silent, healthy, port, hung]) == (
        Peer(SERVICE, MISSING_ANSWERS, 2, 6 * SECOND, 11 * SECOND),
        Peer(OTHER, FIRST_ANSWERS, 1, 500 * SECOND, 500 * SECOND),
    )


@given(st.lists(peers, max_size=20), st.lists(peers, max_size=20))
def test_peers_of_two_places_add_up_in_any_order_and_are_few(
    one: list[Peer], other: list[Peer]
) -> None:
    joint = joint_peers(one, other)
    assert joint == joint_peers(other, one)
    assert len(joint) <= MAX_REPORTED_PEERS
    assert list(joint) == sorted(joint, key=lambda peer: peer.order)
    assert len({(peer.address, peer.kind) for peer in joint}) == len(joint)


def test_the_text_of_a_peer_has_its_figures() -> None:
    assert describe_peer(HUNG) == "2 missing answers, the oldest for 6s"
    assert describe_peer(SILENT) == "1 request without any answer from that peer so far for 1s"


PENDING = {MISSING_ANSWERS: Pending(2, 2, 0, 6 * SECOND, 11 * SECOND)}
HUNG = Peer(SERVICE, MISSING_ANSWERS, 2, 6 * SECOND, 11 * SECOND)
SILENT = Peer(OTHER, FIRST_ANSWERS, 1, SECOND, SECOND)


def test_peers_are_of_the_last_reading_as_pending_waits_are() -> None:
    before = Measurement(pending=PENDING, peers=(HUNG,))
    assert (before + Measurement(counters={"rtos": 1})).peers == (HUNG,)
    assert (before + Measurement(pending={})).peers == ()
    assert (NOTHING + before).peers == (HUNG,)
    assert of_one_pod(before, before).peers == (HUNG + HUNG,)
    assert across_pods(before).peers == ()


def test_peers_of_other_modules_are_left_out() -> None:
    measured = Measurement(pending=PENDING, peers=(HUNG, SILENT))
    assert only(measured, frozenset({Module.TCP})).peers == (HUNG,)
    assert only(measured, frozenset({Module.RX})).peers == ()


def test_the_report_names_peers_by_address_and_port() -> None:
    both = {**PENDING, FIRST_ANSWERS: Pending(1, 1)}
    report = report_on(Measurement(pending=both, peers=(HUNG, SILENT)), DEFAULT_MODULES)
    assert document_of(report)["peers"] == [
        {
            "address": "10.0.0.7:7000",
            "kind": MISSING_ANSWERS,
            "count": 2,
            "oldestNs": 6 * SECOND,
            "waitingNs": 11 * SECOND,
        },
        {
            "address": "[2001:db8::7]:80",
            "kind": FIRST_ANSWERS,
            "count": 1,
            "oldestNs": SECOND,
            "waitingNs": SECOND,
        },
    ]
    assert "peers" not in document_of(report_on(Measurement(pending=PENDING), DEFAULT_MODULES))
