"""The reconciler: makes the kernel side equal to the state in force and to the facts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.os_errors import is_transient
from latencyprobe_agent.assigner import SlotAssigner
from latencyprobe_agent.collector import Moment
from latencyprobe_agent.desired import (
    NOTHING_DESIRED,
    Desired,
    DesiredProbe,
    DesiredTarget,
    PodSelector,
    Selector,
)
from latencyprobe_agent.instruments import Instruments
from latencyprobe_agent.kernel.contract import Engine, EngineError
from latencyprobe_agent.pacing import Pacer, Programs
from latencyprobe_agent.plan import (
    SlotKey,
    TargetKey,
    homes,
    is_udp_wanted,
    namespaces,
    owners,
    pods,
    wanted_modules,
)
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.targets.facts import TargetFacts, failed, pending
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.tracing import Trace, TraceBusyError, TraceWish, check_wish
from latencyprobe_agent.waiting import WaitingModules

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 300.0


class Reconciler:
    """The state in force, and the part of it that the engine has.

    The caller's lock orders `attend` and all other coroutines. Large, because each step that makes
    the engine follow has a step back for its failure.
    """

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        readings: Readings,
        instruments: Instruments,
        clock: Callable[[], float],
        *,
        host_netns: int,
        change_interval_s: float = 0.0,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._readings = readings
        self._instruments = instruments
        self._clock = clock
        self._host_netns = host_netns
        self._desired = NOTHING_DESIRED
        self._trace: Trace | None = None
        self._slots = SlotAssigner(engine)
        self._owners: Mapping[int, tuple[TargetKey, ...]] = {}
        self._change_interval_s = change_interval_s
        self._pacer = Pacer(change_interval_s)
        self._is_loaded = True  # What the pacer has as loaded; False: unknown.
        self._waiting: WaitingModules | None = None
        self._change_at: float | None = None
        self._has_trace_ended = False
        # No own trace until then: the kernel refused it for a reason that may pass.
        self._trace_again_at: float | None = None
        self._retry_at: float | None = None
        self._backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        # The engine's message, while it refuses the state in force.
        self._refusal = ""

    @property
    def desired(self) -> Desired:
        """The state in force."""
        return self._desired

    @property
    def trace(self) -> Trace | None:
        """The trace that runs, or waits for its probe."""
        return self._trace

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """Every stage, with its state."""
        coverage = self._engine.coverage
        return coverage if self._waiting is None else self._waiting.within(coverage)

    def standing(self, probe: DesiredProbe, target: DesiredTarget) -> TargetFacts:
        """Return the facts of a probe's target, or a failure if it has no slot."""
        key = SlotKey(target.selector, probe.socket_filter)
        if refusal := self._slots.refusal(key):
            return failed(refusal)
        facts = self._resolver.facts_of(target.selector)
        if facts.state is TargetState.ATTACHED and (reason := self._waits_for(probe)):
            return failed(self._refusal) if self._refusal else pending(reason)
        if facts.state is not TargetState.ATTACHED:
            return facts
        if isinstance(target.selector, PodSelector) and (problem := self._resolver.watch_problem):
            facts = facts.partial(f"the first packets of new pods may be missing: {problem}")
        number = self._slots.numbers.get(key)
        if number is None:
            return failed(self._refusal) if self._refusal else facts
        for lost in self._engine.lost_parts.get(number, ()):
            if lost.modules & probe.modules:
                facts = facts.partial(lost.reason)
        return facts

    def _waits_for(self, probe: DesiredProbe) -> str:
        """Return why no module of a probe is loaded; empty if one is."""
        waiting = self._waiting
        return waiting.reason if waiting and not probe.modules & waiting.loaded else ""

    # Requests of a client

    async def adopt(self, desired: Desired) -> None:
        """Put a state in force; restore the previous one if that fails or is cancelled."""
        before, targets_before = self._desired, self._resolver.tracked
        try:
            self._resolver.track(desired.selectors)
            await self._realise(desired)
        except BaseException:
            self._resolver.track_again(targets_before)
            await _to_the_end(self._restore(before))
            raise
        log.info(
            "generation %d in force: %d probes, %d targets, %d targets refused",
            desired.generation,
            len(desired.probes),
            len(desired.targets),
            sum(map(len, desired.refused.values())),
        )

    def check_trace(self, wish: TraceWish) -> None:
        """Raise InvalidStateError or TraceBusyError if a client's trace cannot begin now."""
        if self._trace is not None and not self._trace.yields:
            raise TraceBusyError(self._trace.wish.probe_id)
        check_wish(wish, self._desired)

    async def begin_trace(self, wish: TraceWish) -> Trace:
        """Trace packets from now on, or once the probe is in force.

        Raises as `check_trace` does. A refusal of the engine ends the trace.
        """
        self.check_trace(wish)
        trace = self._trace = Trace(wish)
        self._engine.trace(None)  # the trace of an earlier client may not have ended yet
        try:
            if trace.goes_on(self._desired):
                await self._realise_for(trace)
        except BaseException:
            self._trace = None
            raise
        return trace

    def end_trace(self, successor: Trace | None = None) -> None:
        """Forget the trace; `attend` removes it from the kernel, and begins the successor."""
        self._trace = successor
        self._has_trace_ended = True

    async def close(self) -> None:
        """Detach everything."""
        await self._engine.close()
        self._instruments.show_modules(())

    # Changes without a request

    @property
    def next_at(self) -> float | None:
        """The time when `attend` has something to do."""
        times = (self._resolver.next_poll, self._retry_at, self._change_at, self._trace_again_at)
        return min((time for time in times if time is not None), default=None)

    async def attend(self) -> None:
        """Follow targets that come and go, load what is due, and retry after failures."""
        has_changed = self._resolver.refresh() or self._has_trace_ended
        self._instruments.show_missed_pods(self._resolver.missed_pods)
        is_due = any(map(self._is_due, (self._retry_at, self._change_at, self._trace_again_at)))
        if is_due or (has_changed and not self._is_load_due_later()):
            await self._try(self._realise(self._desired))

    async def let_go(self) -> None:
        """Put the empty state in force; log errors, since no client is connected.

        The windows stay, for a client that comes back.
        """
        self._readings.suspend()
        await self._try(self.adopt(NOTHING_DESIRED))

    def _is_due(self, time: float | None) -> bool:
        return time is not None and self._clock() >= time

    def _is_load_due_later(self) -> bool:
        """Return True after a failed load: each change of a target would be another attempt."""
        wanted = wanted_modules(self._desired, self._resolver.facts)
        return self._retry_at is not None and not self._is_loaded and bool(wanted)

    async def _try(self, change: Awaitable[None]) -> None:
        """Await the change; if it fails, retry later. A refusal of the engine is logged."""
        try:
            await change
        except EngineError as error:
            delay_s = self._retry_later(error)
            log.warning("%s; next attempt in %.0f s", error, delay_s)
            self._show_targets()
        except Exception:
            self._retry_later()
            raise

    # The engine

    async def _realise_for(self, trace: Trace) -> None:
        """Begin the trace; if that fails or is cancelled, measure as before."""
        try:
            await self._realise(self._desired)
        except BaseException as error:
            trace.end(error if isinstance(error, EngineError) else None)
            await _to_the_end(self._restore(self._desired))
            if trace.failure is None:
                raise

    async def _restore(self, before: Desired) -> None:
        self._is_loaded = False
        try:
            await self._realise(before)
        except EngineError as error:
            log.warning("cannot restore the previous state: %s", error)
            self._retry_later(error)
        except Exception:
            log.exception("cannot restore the previous state: unexpected error")
            self._retry_later()

    def _retry_later(self, refusal: EngineError | None = None) -> float:
        """Have `attend` try again; return in how many seconds."""
        self._refusal = str(refusal or "")
        delay_s = self._backoff.next()
        self._retry_at = self._clock() + delay_s
        self._pacer.hold(self._retry_at)
        return delay_s

    async def _realise(self, desired: Desired) -> None:
        """Make the engine equal to the state and the facts; the order loses no figures.

        The measurements until now are read for the previous targets. This is left out if targets
        are only added: a new pod may send its first packet soon.
        """
        # The first report is due one interval after this moment, even if compiling takes long.
        asked = self._readings.now()
        facts = self._resolver.facts
        self._has_trace_ended = False
        trace = self._trace if self._trace is not None and self._trace.goes_on(desired) else None
        if trace is None:
            self._engine.trace(None)
        loaded_before = self._pacer.loaded
        trace = await self._load_for(trace, desired, facts)
        before = self._slots.numbers
        if loaded_before != self._pacer.loaded or not self._only_adds(desired, before):
            self._readings.read()
        self._slots.assign(desired, facts, self._readings.read)
        numbers = self._slots.numbers
        # Children from between the poll and the assignment, which the kernel did not follow yet.
        self._resolver.poll_again({key.selector for key in numbers.keys() - before.keys()})
        self._readings.move(
            homes(desired, facts, numbers, self._host_netns), namespaces(facts), facts
        )
        if trace is not None:
            self._engine.trace(trace.spec(desired, numbers))
            trace.has_begun.set()
        self._owners = owners(desired, numbers)
        self._readings.follow(desired, asked, self._owners, pods(desired, facts, numbers))
        self._desired = desired
        self._retry_at = None
        if self._waiting is None:
            self._refusal = ""
            self._backoff.reset()
        self._show_targets()

    def _only_adds(self, desired: Desired, numbers: Mapping[SlotKey, int]) -> bool:
        """Return True if the slots in use measure the same as before, for the same targets."""
        before, after = (
            {probe.id: probe.settings for probe in each.probes} for each in (self._desired, desired)
        )
        return before == after and owners(desired, numbers) == self._owners

    async def _load_for(
        self, trace: Trace | None, desired: Desired, facts: Mapping[Selector, TargetFacts]
    ) -> Trace | None:
        """Load with tracing; return the trace if its packets can be reported now.

        If the kernel refuses only tracing, end the trace. The agent's own is tried again later if
        the reason may pass.
        """
        wanted = Programs(wanted_modules(desired, facts), udp=is_udp_wanted(desired, facts))
        linger = bool(desired.probes)
        if self._is_due(self._trace_again_at):
            self._trace_again_at = None
        if trace is None:
            await self._load(wanted, linger=linger)
            return None
        is_held = trace.yields and self._trace_again_at is not None
        tracing = trace.needs_code(wanted.modules) and not is_held
        try:
            await self._load(replace(wanted, tracing=tracing), linger=linger)
        except EngineError as error:
            if not tracing:
                raise
            await self._load(wanted, linger=linger)
            if not (trace.yields and _may_pass(error)):
                trace.end(error)
                self._engine.trace(None)
                return None
            log.warning("cannot trace packets now: %s; trying again later", error)
            self._trace_again_at = self._clock() + _LONGEST_RETRY_S
        is_loaded = self._pacer.loaded.tracing or not tracing
        return trace if is_loaded or trace.has_begun.is_set() else None

    async def _load(self, wanted: Programs, *, linger: bool) -> None:
        """Load what is wanted now, as far as the pace allows."""
        self._change_at = None
        now = self._readings.now()
        decision = self._pacer.decide(now.monotonic, wanted, linger=linger)
        await self._use(decision.programs)
        self._change_at = decision.next_at
        programs = decision.programs
        lacks_udp = wanted.udp and not programs.udp and Module.RX in programs.modules
        self._wait_for(wanted.modules - programs.modules, now, udp=lacks_udp)

    def _wait_for(self, missing: frozenset[Module], now: Moment, *, udp: bool) -> None:
        """Report these modules, and UDP, as waiting for the next change."""
        due_at, before = self._change_at, self._waiting
        if not (missing or udp) or due_at is None:
            self._waiting = None
            return
        waiting = WaitingModules(
            missing,
            self._pacer.loaded.modules,
            self._change_interval_s,
            due_at,
            now.unix_ns + round((due_at - now.monotonic) * 1e9),
            self._refusal,
            udp,
        )
        # The same text for the same time: a report has the coverage if that has changed.
        self._waiting = before if before == waiting else waiting

    async def _use(self, programs: Programs) -> None:
        if self._is_loaded and programs == self._pacer.loaded:
            return
        self._is_loaded = False
        if programs.modules:
            self._pacer.begin(self._clock())
        await self._engine.use(programs.modules, tracing=programs.tracing, udp=programs.udp)
        self._pacer.finish(programs)
        self._is_loaded = True
        # Without any slot the programs are not to stay attached.
        self._slots.assign_again()
        self._instruments.show_modules(programs.modules)

    def _show_targets(self) -> None:
        self._instruments.show_targets(
            Counter(self.standing(probe, target).state for probe, target in self._desired.targets)
            + Counter({TargetState.FAILED: sum(map(len, self._desired.refused.values()))})
        )


async def _to_the_end(change: Coroutine[object, object, None]) -> None:
    """Await it to its end even if the caller is cancelled; raise CancelledError afterwards."""
    task = asyncio.create_task(change)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def _may_pass(refusal: EngineError) -> bool:
    """Return True if a lack of memory or descriptors, or the like, has caused it."""
    return isinstance(refusal.__cause__, OSError) and is_transient(refusal.__cause__)
