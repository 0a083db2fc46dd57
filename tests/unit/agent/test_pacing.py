"""The pace of loading, on a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.stages import Module
from latencyprobe_agent.pacing import NO_PROGRAMS, RESERVED_STARTS, Pacer, Programs

INTERVAL_S = 60.0
RX, TX, IRQ = (Programs(frozenset({module})) for module in (Module.RX, Module.TX, Module.IRQ))
BOTH = Programs(frozenset({Module.RX, Module.IRQ}))
START_S = 1000.0


@dataclass
class Node:
    """Does what the pacer decides, whenever it is due, and keeps the times of compilations."""

    pacer: Pacer = field(default_factory=lambda: Pacer(INTERVAL_S))
    now: float = START_S
    wanted: Programs = NO_PROGRAMS
    next_at: float | None = None
    compiled_at: list[float] = field(default_factory=list)
    changed_at: list[float] = field(default_factory=list)
    missing_since: dict[str, float] = field(default_factory=dict)

    @property
    def loaded(self) -> Programs:
        return self.pacer.loaded

    def want(self, wanted: Programs, *, linger: bool = True) -> Programs:
        """Have other programs wanted from now on; return those that are loaded."""
        self.wanted = wanted
        return self._follow(linger=linger)

    def pass_time(self, seconds: float) -> Programs:
        """Let the time pass, and the pacer decide whenever it wants to."""
        end = self.now + seconds
        while self.next_at is not None and self.next_at <= end:
            assert self.next_at > self.now, "it is due again at once"
            self.now = self.next_at
            self._follow()
        self.now = end
        return self.loaded

    def _follow(self, *, linger: bool = True) -> Programs:
        decision = self.pacer.decide(self.now, self.wanted, linger=linger)
        self.next_at = decision.next_at
        if decision.programs != self.loaded:
            if decision.programs.modules:
                (self.changed_at if self.loaded.modules else self.compiled_at).append(self.now)
                self.pacer.begin(self.now)
            self.pacer.finish(decision.programs)
        missing = self.wanted.parts - self.loaded.parts
        self.missing_since = {
            part: self.missing_since.get(part, self.now) for part in sorted(missing)
        }
        return self.loaded

    @property
    def all_compiled_at(self) -> list[float]:
        return sorted(self.compiled_at + self.changed_at)


@pytest.fixture
def node() -> Node:
    return Node()


def test_the_first_start_is_at_once(node: Node) -> None:
    assert node.want(RX) == RX
    assert node.next_at is None


def test_a_second_module_waits_until_the_interval_has_passed(node: Node) -> None:
    node.want(RX)
    node.now += 10
    assert node.want(BOTH) == RX
    assert node.next_at == START_S + INTERVAL_S
    assert node.pass_time(49) == RX
    assert node.pass_time(1) == BOTH


def test_a_second_module_long_after_the_first_is_loaded_at_once(node: Node) -> None:
    node.want(RX)
    node.pass_time(INTERVAL_S)
    assert node.want(BOTH) == BOTH


def test_a_module_that_is_not_wanted_any_more_stays_for_an_interval(node: Node) -> None:
    node.want(BOTH)
    node.pass_time(100)
    assert node.want(RX) == BOTH
    assert node.pass_time(INTERVAL_S - 1) == BOTH
    assert node.pass_time(1) == RX
    assert node.next_at is None


def test_a_module_that_comes_back_in_time_costs_nothing(node: Node) -> None:
    node.want(BOTH)
    for _ in range(100):
        node.pass_time(30)
        assert node.want(RX) == BOTH
        node.pass_time(30)
        assert node.want(BOTH) == BOTH
    assert node.all_compiled_at == [START_S]


def test_without_a_target_everything_stays_for_an_interval_and_is_not_compiled_again(
    node: Node,
) -> None:
    node.want(BOTH)
    node.pass_time(100)
    node.want(RX)
    node.pass_time(30)
    assert node.want(NO_PROGRAMS) == BOTH
    assert node.pass_time(INTERVAL_S - 1) == BOTH
    assert node.pass_time(1) == NO_PROGRAMS
    assert node.all_compiled_at == [START_S]


def test_targets_that_a_client_wants_detached_are_detached_at_once(node: Node) -> None:
    node.want(BOTH)
    assert node.want(NO_PROGRAMS, linger=False) == NO_PROGRAMS
    assert node.next_at is None


def test_starts_are_at_once_while_the_reserve_lasts(node: Node) -> None:
    for _ in range(RESERVED_STARTS):
        assert node.want(RX) == RX
        node.want(NO_PROGRAMS, linger=False)
        node.now += 1
    assert node.want(RX) == NO_PROGRAMS
    assert node.next_at == START_S + RESERVED_STARTS - 1 + INTERVAL_S - (RESERVED_STARTS - 1)
    node.pass_time(INTERVAL_S)
    assert node.loaded == RX


def test_probes_that_come_and_go_cost_a_start_per_interval_and_another_one_waits_no_longer(
    node: Node,
) -> None:
    hour_s = 3600
    while node.now < START_S + hour_s:
        node.want(RX)
        node.pass_time(1)
        node.want(NO_PROGRAMS, linger=False)
        node.pass_time(1)
    assert len(node.all_compiled_at) <= RESERVED_STARTS + hour_s / INTERVAL_S
    node.want(IRQ)
    assert node.pass_time(INTERVAL_S) == IRQ


def test_the_back_off_of_a_crash_loop_never_waits(node: Node) -> None:
    back_off_s = (10, 20, 40, 80, 160, *[300] * 20)
    for delay_s in back_off_s:
        assert node.want(RX) == RX
        node.now += 1
        node.want(NO_PROGRAMS, linger=False)
        node.now += delay_s


def test_a_crash_loop_whose_probe_stays_compiles_only_after_long_breaks(node: Node) -> None:
    for delay_s in (10, 20, 40):
        assert node.want(RX) == RX
        node.want(NO_PROGRAMS)
        node.pass_time(delay_s)
    assert node.all_compiled_at == [START_S]


def test_tracing_is_paced_as_modules_are(node: Node) -> None:
    traced = Programs(RX.modules, tracing=True)
    node.want(RX)
    node.now += 1
    assert node.want(traced) == RX
    assert node.pass_time(INTERVAL_S) == traced
    assert node.want(RX) == traced
    assert node.pass_time(INTERVAL_S) == RX


def test_udp_is_paced_as_modules_are(node: Node) -> None:
    with_udp = Programs(RX.modules, udp=True)
    node.want(RX)
    node.now += 1
    assert node.want(with_udp) == RX
    assert node.pass_time(INTERVAL_S) == with_udp
    assert node.want(RX) == with_udp
    assert node.pass_time(INTERVAL_S) == RX


def test_without_an_interval_every_change_is_at_once() -> None:
    node = Node(Pacer(0))
    extras = (Programs(RX.modules, tracing=True), Programs(RX.modules, udp=True))
    for wanted in (RX, BOTH, NO_PROGRAMS, IRQ, *extras, RX) * 10:
        assert node.want(wanted) == wanted
        assert node.next_at is None


def test_after_a_failure_nothing_changes_before_the_time_of_the_next_attempt(node: Node) -> None:
    node.want(RX)
    node.pass_time(100)
    node.pacer.begin(node.now)
    node.pacer.hold(node.now + 300)
    decision = node.pacer.decide(node.now + 61, BOTH)
    assert (decision.programs, decision.next_at) == (RX, node.now + 300)


WISHES = st.builds(
    lambda modules, tracing, udp: Programs(
        frozenset(modules), bool(modules) and tracing, bool(modules) and udp
    ),
    st.sets(st.sampled_from(tuple(Module))),
    st.booleans(),
    st.booleans(),
)
LIVES = st.lists(st.tuples(st.integers(0, 150), WISHES, st.booleans()), max_size=60)


@given(LIVES)
def test_no_sequence_of_wishes_compiles_more_often_or_loses_a_module(
    life: list[tuple[int, Programs, bool]],
) -> None:
    node = Node()
    last_wanted: dict[str, float] = {}
    for delay_s, wanted, linger in life:
        for part in node.wanted.parts:
            last_wanted[part] = node.now + delay_s
        before = node.loaded
        node.pass_time(delay_s)
        is_all_gone = not wanted.parts and not linger
        node.want(wanted, linger=linger or bool(wanted.parts))
        # What is wanted stays, and does so for an interval more, unless a client empties the node.
        for part in before.parts if not is_all_gone else ():
            if last_wanted.get(part, 0) + INTERVAL_S > node.now:
                assert part in node.loaded.parts
        # Nothing waits for longer than an interval.
        for since in node.missing_since.values():
            assert node.now - since < INTERVAL_S
            assert node.next_at is not None
            assert node.next_at - since <= INTERVAL_S

    times = node.all_compiled_at
    # Loaded programs are replaced at most once per interval, counted from any compilation.
    for changed in node.changed_at:
        earlier = [time for time in times if time < changed]
        assert changed - earlier[-1] >= INTERVAL_S
    # Starts of an empty node have a reserve besides.
    for first, began in enumerate(times):
        for count, ended in enumerate(times[first:], 1):
            assert count <= RESERVED_STARTS + 1 + (ended - began) / INTERVAL_S

    # In quiet, the loaded programs become the wanted ones: those that wait within one interval, and
    # what is too much with the change after that.
    node.pass_time(INTERVAL_S)
    assert node.wanted.parts <= node.loaded.parts
    node.pass_time(INTERVAL_S)
    assert node.loaded == node.wanted
    assert node.next_at is None
