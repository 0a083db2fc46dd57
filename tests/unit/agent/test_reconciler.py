"""An engine that refuses what targets need, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.kernel.contract import EngineError, LostPart
from latencyprobe_agent.pacing import RESERVED_STARTS
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.reconciler import Reconciler
from latencyprobe_agent.serving.messages import status_message
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.facts import TargetFacts, failed, pending
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.tracing import TraceWish
from tests.unit.agent.running import until
from tests.unit.agent.scripted import Clock, ScriptedEngine, ScriptedEvidence, samples
from tests.unit.agent.states import probe, state

KILLED = "the compiler process was killed (SIGKILL): probably out of memory"


class _Engine(ScriptedEngine):
    """Counts the attempts to load."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.refused = 0
        self.kept: frozenset[Module] | None = None

    async def use(self, *args: object, **options: object) -> None:
        self.attempts += 1
        if args[0] == self.kept:
            return
        try:
            await super().use(*args, **options)  # type: ignore[arg-type]
        except EngineError:
            self.refused += 1
            raise


class Reconciled:
    """A reconciler with one target, which is there once `netns` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, change_interval_s: float = 0) -> None:
        self.clock = Clock()
        self.engine = _Engine()
        metrics = AgentMetrics()
        resolver = Resolver(clock=self.clock)
        readings = Readings(self.engine, ScriptedEvidence(), metrics, self.clock)
        self.reconciler = Reconciler(
            self.engine,
            resolver,
            readings,
            metrics,
            self.clock,
            change_interval_s=change_interval_s,
            host_netns=1,
        )
        self.netns: frozenset[int] = frozenset()
        self.failure: OSError | None = None
        monkeypatch.setattr(resolver, "_tracker_of", lambda _: self)

    def poll(self) -> TargetFacts:
        """Be its tracker."""
        if self.failure is not None:
            raise self.failure
        if not self.netns:
            return failed("not there yet")
        return TargetFacts(TargetState.ATTACHED, netns=self.netns, netns_wide=self.netns)

    @property
    def standing(self) -> TargetFacts:
        (desired,) = self.reconciler.desired.probes
        return self.reconciler.standing(desired, desired.targets[0])

    async def pass_time(self, seconds: float) -> None:
        """Let the time pass, and the reconciler attend whenever it wants to."""
        end = self.clock.now + seconds
        while (at := self.reconciler.next_at) is not None and at <= end:
            self.clock.now = max(self.clock.now, at)
            await self.reconciler.attend()
        self.clock.now = end

    async def attempts(self, most: int) -> list[float]:
        """Let the time pass; return the delays between so many attempts to load."""
        delays: list[float] = []
        since, before = self.clock.now, self.engine.attempts
        while len(delays) < most:
            assert self.reconciler.next_at is not None
            self.clock.now = max(self.clock.now, self.reconciler.next_at)
            await self.reconciler.attend()
            if self.engine.attempts > before:
                delays.append(self.clock.now - since)
                since, before = self.clock.now, self.engine.attempts
        return delays


@pytest.fixture
async def waiting(monkeypatch: pytest.MonkeyPatch) -> Reconciled:
    """With a state in force whose target fails, and an engine that refuses to load."""
    reconciled = Reconciled(monkeypatch)
    await reconciled.reconciler.adopt(parse_desired(state(probe())))
    reconciled.engine.refusal = KILLED
    reconciled.netns = frozenset({7})
    return reconciled


async def test_a_target_whose_packets_are_lost_says_so_until_they_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconciled = Reconciled(monkeypatch)
    reconciled.netns = frozenset({7})
    await reconciled.reconciler.adopt(parse_desired(state(probe())))
    (slot,) = reconciled.engine.slots
    partial = []
    full = LostPart(frozenset({Module.RX, Module.TX}), "memory is full")
    of_others = LostPart(frozenset({Module.SCHED}), "too many threads")
    for lacking in ({}, {slot: [of_others, full]}, {slot + 1: [full]}, {slot: [of_others]}):
        reconciled.engine.lacking = lacking
        standing = reconciled.standing
        assert status_message("t", standing).partial is standing.is_partial
        partial.append((standing.is_partial, standing.message))
    assert partial == [(False, ""), (True, "memory is full"), (False, ""), (False, "")]


async def test_modules_that_cannot_be_loaded_are_tried_ever_more_seldom(
    waiting: Reconciled,
) -> None:
    first, *delays = await waiting.attempts(12)
    assert first <= 1
    assert delays[0] <= 5
    assert all(150 <= delay <= 303 for delay in delays[-3:])


async def test_a_target_that_is_measured_now_is_polled_again_at_once(
    waiting: Reconciled,
) -> None:
    """What its processes forked before the kernel followed them is found by the next poll."""
    waiting.engine.refusal = None
    await waiting.attempts(1)
    assert waiting.standing.state is TargetState.ATTACHED
    assert waiting.reconciler.next_at == waiting.clock.now
    waiting.netns = frozenset({7, 8})
    await waiting.reconciler.attend()
    assert waiting.engine.slots[0].netns == {7, 8}
    assert waiting.reconciler.next_at is not None
    assert waiting.reconciler.next_at > waiting.clock.now


async def test_targets_that_change_all_the_time_make_no_attempts_of_their_own(
    waiting: Reconciled,
) -> None:
    await waiting.attempts(4)
    before, end = waiting.engine.attempts, waiting.clock.now + 9
    while waiting.clock.now < end:
        waiting.netns = frozenset({*waiting.netns, 100 + len(waiting.netns)})
        waiting.clock.now += 0.5
        await waiting.reconciler.attend()
    assert waiting.engine.attempts == before


async def test_a_target_that_is_not_measured_reports_the_engines_message_until_it_is(
    waiting: Reconciled,
) -> None:
    await waiting.attempts(2)
    assert (waiting.standing.state, waiting.standing.message) == (TargetState.FAILED, KILLED)
    waiting.engine.refusal = None
    await waiting.attempts(1)
    assert waiting.standing.state is TargetState.ATTACHED


async def test_after_a_success_the_next_failure_is_tried_again_soon(waiting: Reconciled) -> None:
    await waiting.attempts(8)
    waiting.engine.refusal = None
    await waiting.attempts(1)
    waiting.engine.refusal = KILLED
    with pytest.raises(EngineError):
        await waiting.reconciler.adopt(parse_desired(state(probe(modules=("irq",)), generation=2)))
    before = waiting.engine.attempts
    waiting.clock.now += 5
    await waiting.reconciler.attend()
    assert waiting.engine.attempts > before


async def test_when_no_target_is_left_nothing_is_waited_for(waiting: Reconciled) -> None:
    await waiting.attempts(6)
    waiting.netns = frozenset()
    waiting.clock.now += 3
    await asyncio.wait_for(waiting.reconciler.attend(), 10)
    assert waiting.standing.message == "not there yet"
    assert waiting.engine.modules == frozenset()


async def test_programs_for_a_target_that_is_still_to_come_are_not_to_stay_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starting = Reconciled(monkeypatch)
    monkeypatch.setattr(starting, "poll", lambda: pending("starting"))
    await starting.reconciler.adopt(parse_desired(state(probe())))
    assert starting.engine.modules
    assert starting.engine.assignments == [{}]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
async def test_a_failed_change_keeps_the_targets_of_before_though_none_can_be_polled(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    reconciled = Reconciled(monkeypatch)
    reconciled.netns = frozenset({7})
    await reconciled.reconciler.adopt(parse_desired(state(probe(modules=("rx",)))))
    before = reconciled.engine.slots
    reconciled.engine.kept = reconciled.engine.modules
    reconciled.engine.stall = asyncio.Event()
    other = parse_desired(state(probe(pid=1, modules=("irq",)), generation=2))
    change = asyncio.create_task(reconciled.reconciler.adopt(other))
    await until(lambda: reconciled.engine.stalled, "the new modules to be loaded")
    reconciled.engine.refusal = os.strerror(code)
    reconciled.failure = OSError(code, os.strerror(code))
    reconciled.engine.stall.set()
    with pytest.raises(EngineError):
        await change
    assert reconciled.standing.state is TargetState.ATTACHED
    await reconciled.pass_time(10)
    assert reconciled.standing.state is TargetState.ATTACHED
    assert reconciled.engine.slots == before
    assert {} not in reconciled.engine.assignments


# A pace for the changes of modules

RX, BOTH = {Module.RX}, {Module.RX, Module.IRQ}


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Reconciled:
    """Changes its programs at most once in 60 s; its target is there."""
    reconciled = Reconciled(monkeypatch, change_interval_s=60)
    reconciled.netns = frozenset({7})
    return reconciled


async def adopt(paced: Reconciled, *modules: str, protocols: tuple[str, ...] = ()) -> None:
    """Put a state with one probe in force, or the empty state."""
    probes = [probe(modules=modules, protocols=protocols)] if modules else []
    await paced.reconciler.adopt(parse_desired(state(*probes)))


def state_of(paced: Reconciled) -> TargetState:
    return paced.standing.state


def is_reporting(paced: Reconciled) -> bool:
    return paced.engine.trace_spec is not None


def has_tracing(paced: Reconciled) -> bool:
    return paced.engine.tracing


def has_udp(paced: Reconciled) -> bool:
    return paced.engine.udp


def coverage_of(paced: Reconciled, name: str) -> StageCoverage | None:
    return next((stage for stage in paced.reconciler.coverage if stage.name == name), None)


async def test_a_module_that_waits_is_reported_and_loaded_without_a_request(
    paced: Reconciled,
) -> None:
    await adopt(paced, "rx")
    assert coverage_of(paced, "irq.hard") == StageCoverage("irq.hard", CoverageState.IDLE)
    await paced.pass_time(10)
    await adopt(paced, "rx", "irq", "tcp")
    assert paced.engine.modules == RX
    for name in ("irq.hard", "tcp.rtt", "retransmits", "drops"):
        waiting = coverage_of(paced, name)
        assert waiting is not None
        assert waiting.state is CoverageState.UNAVAILABLE
        assert waiting.reason.startswith("modules tcp, irq not loaded yet: ")
        assert "at most once per 60 s; due at " in waiting.reason
    assert coverage_of(paced, "rx.total") == StageCoverage(
        "rx.total", CoverageState.ACTIVE, "scripted"
    )
    assert coverage_of(paced, "sched.runqueue") == StageCoverage(
        "sched.runqueue", CoverageState.IDLE
    )
    assert state_of(paced) is TargetState.ATTACHED
    await paced.pass_time(49)
    assert paced.engine.modules == RX
    await paced.pass_time(1)
    assert paced.engine.modules == {Module.RX, Module.IRQ, Module.TCP}
    assert coverage_of(paced, "retransmits") is None
    assert all(stage.state is not CoverageState.UNAVAILABLE for stage in paced.reconciler.coverage)


async def test_a_probe_that_newly_wants_udp_waits_for_it_and_gets_it(paced: Reconciled) -> None:
    await adopt(paced, "rx", "tx", protocols=("TCP",))
    assert not has_udp(paced)
    assert coverage_of(paced, "rx.total") == StageCoverage(
        "rx.total", CoverageState.ACTIVE, "scripted", "no probe asks for UDP"
    )
    await paced.pass_time(10)
    await adopt(paced, "rx", "tx")
    waiting, unconcerned = coverage_of(paced, "rx.total"), coverage_of(paced, "tx.total")
    assert waiting is not None
    assert waiting.state is CoverageState.PARTIAL
    assert waiting.reason.startswith("UDP is not measured: UDP not loaded yet: a node changes ")
    assert unconcerned == StageCoverage("tx.total", CoverageState.ACTIVE, "scripted")
    assert state_of(paced) is TargetState.ATTACHED
    await paced.pass_time(49)
    assert not has_udp(paced)
    await paced.pass_time(1)
    assert has_udp(paced)
    assert coverage_of(paced, "rx.total") == StageCoverage(
        "rx.total", CoverageState.ACTIVE, "scripted"
    )


async def test_modules_and_udp_that_wait_are_named_together(paced: Reconciled) -> None:
    await adopt(paced, "rx", protocols=("TCP",))
    await paced.pass_time(10)
    await adopt(paced, "rx", "irq")
    for name in ("irq.hard", "rx.total"):
        waiting = coverage_of(paced, name)
        assert waiting is not None
        assert "module irq and UDP not loaded yet: " in waiting.reason


async def test_the_programs_for_udp_go_an_interval_after_the_last_probe_for_it(
    paced: Reconciled,
) -> None:
    await adopt(paced, "rx")
    await paced.pass_time(100)
    await adopt(paced, "rx", protocols=("TCP",))
    assert has_udp(paced)
    await paced.pass_time(60)
    assert not has_udp(paced)
    assert paced.engine.modules == RX


async def test_the_reason_for_waiting_stays_the_same_while_targets_change(
    paced: Reconciled,
) -> None:
    await adopt(paced, "rx")
    await adopt(paced, "rx", "irq")
    before = coverage_of(paced, "irq.hard")
    for inode in range(100, 110):
        paced.netns = frozenset({inode})
        await paced.pass_time(1)
    assert coverage_of(paced, "irq.hard") == before


async def test_a_module_without_a_probe_is_dropped_without_a_request(paced: Reconciled) -> None:
    await adopt(paced, "rx", "irq")
    await paced.pass_time(100)
    await adopt(paced, "rx")
    assert paced.engine.modules == BOTH
    await paced.pass_time(59)
    assert paced.engine.modules == BOTH
    await paced.pass_time(1)
    assert paced.engine.modules == RX


async def test_a_target_that_comes_and_goes_costs_one_attempt(paced: Reconciled) -> None:
    await adopt(paced, "rx")
    for inode in range(100, 120):
        paced.netns = frozenset()
        await paced.pass_time(5)
        assert state_of(paced) is TargetState.FAILED
        paced.netns = frozenset({inode})
        await paced.pass_time(25)
        assert state_of(paced) is TargetState.ATTACHED
    assert paced.engine.attempts == 1
    paced.netns = frozenset()
    await paced.pass_time(80)
    assert paced.engine.modules == set()


async def test_the_empty_state_detaches_at_once_though_programs_lingered(
    paced: Reconciled,
) -> None:
    await adopt(paced, "rx", "irq")
    await adopt(paced, "rx")
    await adopt(paced)
    assert paced.engine.modules == set()
    await adopt(paced, "rx")
    await paced.reconciler.let_go()
    assert paced.engine.modules == set()


async def test_a_probe_without_any_loaded_module_is_pending_until_a_start_is_allowed(
    paced: Reconciled,
) -> None:
    for _ in range(RESERVED_STARTS):
        await adopt(paced, "rx")
        assert state_of(paced) is TargetState.ATTACHED
        await adopt(paced)
    await adopt(paced, "rx")
    assert state_of(paced) is TargetState.PENDING
    assert paced.standing.message.startswith("module rx not loaded yet: ")
    assert paced.engine.modules == set()
    await paced.pass_time(60)
    assert state_of(paced) is TargetState.ATTACHED
    assert paced.engine.modules == RX


async def test_a_due_change_that_fails_is_tried_ever_more_seldom_and_the_rest_goes_on(
    paced: Reconciled,
) -> None:
    await adopt(paced, "rx")
    await adopt(paced, "rx", "irq")
    paced.engine.refusal = KILLED
    # The scripted engine refuses what is loaded already too; a kernel has that still.
    paced.engine.kept = frozenset(RX)
    failures: list[float] = []
    while len(failures) < 12:
        before = paced.engine.refused
        assert paced.reconciler.next_at is not None
        await paced.pass_time(max(paced.reconciler.next_at - paced.clock.now, 0))
        if paced.engine.refused > before:
            failures.append(paced.clock.now)
        else:
            await adopt(paced, "rx", "irq")  # a client that insists changes nothing
    delays = [later - earlier for earlier, later in itertools.pairwise(failures)]
    assert min(delays) >= 60
    assert all(delay >= 150 for delay in delays[-3:])
    assert paced.engine.modules == RX
    assert state_of(paced) is TargetState.ATTACHED
    await paced.pass_time(5)
    stage = coverage_of(paced, "irq.hard")
    assert stage is not None
    assert stage.reason.startswith(f"cannot load module irq: {KILLED}; next attempt at ")
    paced.engine.refusal = None
    await paced.pass_time(300)
    assert paced.engine.modules == BOTH


async def test_a_trace_that_has_to_compile_waits_its_turn(paced: Reconciled) -> None:
    await adopt(paced, "rx")
    trace = await paced.reconciler.begin_trace(TraceWish("p", {"rx.total": 1}, 0))
    assert not trace.has_begun.is_set()
    assert not is_reporting(paced)
    await paced.pass_time(60)
    assert trace.has_begun.is_set()
    assert has_tracing(paced)
    assert is_reporting(paced)
    paced.reconciler.end_trace()
    await paced.reconciler.attend()
    assert not is_reporting(paced)
    again = await paced.reconciler.begin_trace(TraceWish("p", {"rx.total": 1}, 0))
    assert again.has_begun.is_set()
    paced.reconciler.end_trace()
    await paced.reconciler.attend()
    await paced.pass_time(60)
    assert not has_tracing(paced)
    assert paced.engine.modules == RX


async def test_figures_go_on_while_modules_flip(paced: Reconciled) -> None:
    await adopt(paced, "rx")
    slots = paced.engine.slots
    for _ in range(50):
        for modules in (("rx", "irq"), ("rx", "sched", "tcp"), ("rx",)):
            await adopt(paced, *modules)
            await paced.pass_time(0.1)
    assert paced.engine.slots == slots
    assert len(paced.engine.assignments) == 1
    assert paced.engine.attempts == 1
    paced.engine.measure(samples(5))
    await paced.pass_time(120)
    assert paced.engine.modules == RX


async def test_a_pod_is_partial_while_new_pods_are_found_by_polling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconciled = Reconciled(monkeypatch)
    reconciled.netns = frozenset({7})
    desired = state(probe())
    del desired.probes[0].targets[:]
    desired.probes[0].pods.add(uid="0" * 32)
    await reconciled.reconciler.adopt(parse_desired(desired))
    before = reconciled.standing
    resolver = reconciled.reconciler._resolver
    monkeypatch.setattr(resolver._watches, "problem", "too many watches")
    after = reconciled.standing
    assert (before.is_partial, after.is_partial) == (False, True)
    assert after.message == "the first packets of new pods may be missing: too many watches"


def _on_pods(*uids: str, generation: int, interval_s: float = 0.1) -> pb.DesiredState:
    desired = state(probe(interval_s=interval_s), generation=generation)
    del desired.probes[0].targets[:]
    desired.probes[0].pods.extend(pb.Pod(uid=uid * 32) for uid in uids)
    return desired


async def test_a_pod_that_is_added_does_not_wait_for_a_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reconciled = Reconciled(monkeypatch)
    reconciled.netns = frozenset({7})

    async def readings(desired: pb.DesiredState) -> int:
        before = reconciled.engine.reads
        await reconciled.reconciler.adopt(parse_desired(desired))
        return reconciled.engine.reads - before

    assert await readings(_on_pods("a", generation=1)) == 1
    assert await readings(_on_pods("a", "b", generation=2)) == 0
    assert len(reconciled.engine.slots) == 2
    assert await readings(_on_pods("a", generation=3)) >= 1
    assert await readings(_on_pods("a", generation=4, interval_s=0.2)) == 1
    another = _on_pods("a", generation=5, interval_s=0.2)
    another.probes.add().CopyFrom(another.probes[0])
    another.probes[1].id = "q"
    assert await readings(another) == 1
