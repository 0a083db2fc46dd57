"""The reconciler: makes the kernel side equal to the state in force and to the facts."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine

from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.process.backoff import Backoff
from latencyprobe_agent.assigner import SlotAssigner
from latencyprobe_agent.desired import NOTHING_DESIRED, Desired, DesiredProbe, DesiredTarget
from latencyprobe_agent.instruments import Instruments
from latencyprobe_agent.kernel.contract import Engine, EngineError
from latencyprobe_agent.plan import SlotKey, homes, namespaces, owners, wanted_modules
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.targets.facts import TargetFacts, failed
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.tracing import Trace, TraceBusyError, TraceWish, check_wish

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
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._readings = readings
        self._instruments = instruments
        self._clock = clock
        self._desired = NOTHING_DESIRED
        self._trace: Trace | None = None
        self._slots = SlotAssigner(engine)
        # The modules, and True if single packets are reported; None: unknown.
        self._loaded: tuple[frozenset[Module], bool] | None = (frozenset(), False)
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

    def standing(self, probe: DesiredProbe, target: DesiredTarget) -> TargetFacts:
        """Return the facts of a probe's target, or a failure if it has no slot."""
        key = SlotKey(target.selector, probe.socket_filter)
        if refusal := self._slots.refusal(key):
            return failed(refusal)
        facts = self._resolver.facts_of(target.selector)
        is_measured = facts.state is not TargetState.ATTACHED or key in self._slots.numbers
        return facts if is_measured or not self._refusal else failed(self._refusal)

    # Requests of a client

    async def adopt(self, desired: Desired) -> None:
        """Put a state in force; restore the previous one if that fails or is cancelled."""
        before = self._desired
        self._resolver.track(desired.selectors)
        try:
            await self._realise(desired)
        except BaseException:
            await _to_the_end(self._restore(before))
            raise
        log.info(
            "generation %d in force: %d probes, %d targets, %d targets refused",
            desired.generation,
            len(desired.probes),
            len(desired.targets),
            sum(map(len, desired.refused.values())),
        )

    async def begin_trace(self, wish: TraceWish) -> Trace:
        """Trace packets from now on, or once the probe is in force.

        Raises InvalidStateError and TraceBusyError. A refusal of the engine ends the trace.
        """
        if self._trace is not None:
            raise TraceBusyError(self._trace.wish.probe_id)
        check_wish(wish, self._desired)
        trace = self._trace = Trace(wish)
        self._engine.trace(None)  # the trace of an earlier client may not have ended yet
        try:
            if trace.goes_on(self._desired):
                await self._realise_for(trace)
        except BaseException:
            self._trace = None
            raise
        return trace

    def end_trace(self) -> None:
        """Forget the trace; `attend` removes it from the kernel."""
        self._trace = None

    async def close(self) -> None:
        """Detach everything."""
        await self._engine.close()
        self._instruments.show_modules(())

    # Changes without a request

    @property
    def next_at(self) -> float | None:
        """The time when `attend` has something to do."""
        times = [t for t in (self._resolver.next_look, self._retry_at) if t is not None]
        return min(times, default=None)

    async def attend(self) -> None:
        """Follow targets that come and go, and retry after failures."""
        has_changed = self._resolver.refresh() or self._is_trace_over()
        if self._is_retry_due() or (has_changed and not self._is_load_due_later()):
            await self._try(self._realise(self._desired))

    async def let_go(self) -> None:
        """Put the empty state in force; log errors, since no client is connected."""
        await self._try(self.adopt(NOTHING_DESIRED))

    def _is_retry_due(self) -> bool:
        return self._retry_at is not None and self._clock() >= self._retry_at

    def _is_load_due_later(self) -> bool:
        """Return True after a failed load: each change of a target would be another attempt."""
        wanted = wanted_modules(self._desired, self._resolver.facts)
        return self._retry_at is not None and self._loaded is None and bool(wanted)

    def _is_trace_over(self) -> bool:
        """Return True if the programs still report packets, but no trace runs."""
        return self._loaded is not None and self._loaded[1] and self._trace is None

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
        self._loaded = None
        self._resolver.track(before.selectors)
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
        return delay_s

    async def _realise(self, desired: Desired) -> None:
        """Make the engine equal to the state and the facts; the order loses no figures.

        The measurements until now are read for the previous targets.
        """
        # The first report is due one interval after this moment, even if compiling takes long.
        asked = self._readings.now()
        facts = self._resolver.facts
        trace = self._trace if self._trace is not None and self._trace.goes_on(desired) else None
        if trace is None:
            self._engine.trace(None)
        trace = await self._load_for(trace, wanted_modules(desired, facts))
        self._readings.read()
        self._slots.assign(desired, facts, self._readings.read)
        numbers = self._slots.numbers
        self._readings.move(homes(desired, facts, numbers), namespaces(facts))
        if trace is not None:
            self._engine.trace(trace.spec(desired, numbers))
            trace.has_begun.set()
        self._readings.follow(desired, asked, owners(desired, numbers))
        self._desired = desired
        self._retry_at = None
        self._refusal = ""
        self._backoff.reset()
        self._show_targets()

    async def _load_for(self, trace: Trace | None, modules: frozenset[Module]) -> Trace | None:
        """Load with tracing; if the kernel refuses only that, end the trace."""
        if trace is not None:
            try:
                await self._load(modules, tracing=True)
            except EngineError as error:
                trace.end(error)
                self._engine.trace(None)
            else:
                return trace
        await self._load(modules, tracing=False)
        return None

    async def _load(self, modules: frozenset[Module], *, tracing: bool) -> None:
        if (modules, tracing) == self._loaded:
            return
        self._loaded = None
        await self._engine.use(modules, tracing=tracing)
        self._loaded = (modules, tracing)
        self._instruments.show_modules(modules)

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
