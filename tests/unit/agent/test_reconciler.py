"""An engine that refuses what targets need, on a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from latencyprobe.domain.targets import TargetState
from latencyprobe_agent.kernel.contract import EngineError
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.reconciler import Reconciler
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.facts import TargetFacts, failed
from latencyprobe_agent.targets.resolver import Resolver
from tests.unit.agent.scripted import Clock, ScriptedEngine, ScriptedEvidence
from tests.unit.agent.states import probe, state

KILLED = "the compiler process was killed (SIGKILL): probably out of memory"


class _Engine(ScriptedEngine):
    """Counts the attempts to load."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0

    async def use(self, *args: object, **options: object) -> None:
        self.attempts += 1
        await super().use(*args, **options)  # type: ignore[arg-type]


class Reconciled:
    """A reconciler with one target, which is there once `netns` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.engine = _Engine()
        metrics = AgentMetrics()
        resolver = Resolver(clock=self.clock)
        readings = Readings(self.engine, ScriptedEvidence(), metrics, self.clock)
        self.reconciler = Reconciler(self.engine, resolver, readings, metrics, self.clock)
        self.netns: frozenset[int] = frozenset()
        monkeypatch.setattr(resolver, "_tracker_of", lambda _: self)

    def look(self) -> TargetFacts:
        """Be its tracker."""
        if not self.netns:
            return failed("not there yet")
        return TargetFacts(TargetState.ATTACHED, netns=self.netns, netns_wide=self.netns)

    @property
    def standing(self) -> TargetFacts:
        (desired,) = self.reconciler.desired.probes
        return self.reconciler.standing(desired, desired.targets[0])

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


async def test_what_can_not_be_loaded_is_tried_ever_more_seldom(waiting: Reconciled) -> None:
    first, *delays = await waiting.attempts(12)
    assert first <= 1
    assert delays[0] <= 5
    assert all(150 <= delay <= 303 for delay in delays[-3:])


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
