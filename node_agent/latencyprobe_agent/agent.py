"""The agent of one node: keeps the kernel side equal to the desired state, and reports.

One lock orders every use of the engine: applying a state, following the targets, reading. Reports
are made from the accounts of the readings, without the lock. So an Apply that compiles never delays
a stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from latencyprobe.domain.cgroups import Cgroup
from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.packets import TracedPacket
from latencyprobe_agent.budget import NO_CEILINGS, Ceilings
from latencyprobe_agent.desired import Desired, DesiredProbe, Refusals, admit
from latencyprobe_agent.evidence.known_cgroups import KnownCgroups
from latencyprobe_agent.evidence.source import EvidenceSource
from latencyprobe_agent.instruments import Instruments
from latencyprobe_agent.kernel.contract import Engine
from latencyprobe_agent.lease import Lease, Pump, StaleTermError
from latencyprobe_agent.pressure import no_pressure
from latencyprobe_agent.readings import Readings
from latencyprobe_agent.reconciler import Reconciler
from latencyprobe_agent.standing_trace import OwnTrace
from latencyprobe_agent.target_events import TargetEvents
from latencyprobe_agent.targets.facts import TargetFacts
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.totals import Totals
from latencyprobe_agent.tracing import PacketNews, Trace, TraceWish
from latencyprobe_agent.windows.probe_window import WindowReport

log = logging.getLogger(__name__)

_RETRY_UNEXPECTED_S = 1.0

SendNews = Callable[[PacketNews], Awaitable[None]]


class StaleGenerationError(Exception):
    """A desired state older than the one in force."""

    def __init__(self, offered: int, applied: int) -> None:
        self.offered, self.applied = offered, applied
        super().__init__(
            f"generation {offered} is older than {applied}, which is in force; "
            "fetch the newest state and apply it"
        )


class ShuttingDownError(Exception):
    """A call during the shutdown of the agent."""

    def __init__(self) -> None:
        super().__init__("the agent is shutting down")


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """The facts of the node that do not change while the agent runs."""

    node_name: str
    kernel_release: str
    architecture: str
    kernel_types: str
    cgroup_version: str
    host_netns: int
    """The inode number of the node's own network namespace."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A state that was put in force, with its targets' facts by the ids of probe and target."""

    generation: int
    standings: Mapping[str, Mapping[str, TargetFacts]]
    refused: Refusals
    coverage: tuple[StageCoverage, ...]


class Agent:
    """The calls of a client, and the agent's work between them.

    Large, because one lock orders all calls that change desired states or read measurements: a part
    of its own could not hold it.
    """

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        node: NodeDescription,
        instruments: Instruments,
        evidence: EvidenceSource,
        *,
        clock: Callable[[], float] = time.monotonic,
        ceilings: Ceilings = NO_CEILINGS,
        pressure: Callable[[], float] = no_pressure,
        change_interval_s: float = 0.0,
        totals: Totals | None = None,
        cgroups: KnownCgroups | None = None,
        exemplars_ns: int | None = None,
    ) -> None:
        """Measure nothing yet.

        `pressure`: the node's CPU pressure in percent. `change_interval_s`: the time between two
        changes of the loaded programs; 0: no limit. `totals`: the sums for metrics. `cgroups`:
        for the names of those that targets wait for. `exemplars_ns`: trace packets that take at
        least this long, while no client traces; None: trace for clients only.
        """
        self.instance_id = str(uuid.uuid4())
        self.node = node
        self.readings = Readings(
            engine,
            evidence,
            instruments,
            clock,
            ceilings=ceilings,
            pressure=pressure,
            totals=totals,
            cgroups=cgroups,
        )
        self._reconciler = Reconciler(
            engine,
            resolver,
            self.readings,
            instruments,
            clock,
            change_interval_s=change_interval_s,
            host_netns=node.host_netns,
        )
        self._engine = engine
        self._resolver = resolver
        self._instruments = instruments
        self._clock = clock
        self._lease = Lease(clock)
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._own_trace = OwnTrace(
            exemplars_ns,
            lambda trace: self._pump_packets(trace, _discard),
            self._end_trace,
        )
        self._is_closed = False

    # State

    @property
    def generation(self) -> int:
        """The generation of the state in force."""
        return self._reconciler.desired.generation

    @property
    def term(self) -> int:
        """The term of the state in force."""
        return self._reconciler.desired.term

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        """Every stage, with its state."""
        return self._reconciler.coverage

    @property
    def has_local_probe(self) -> bool:
        """True if a client wants figures of the node, and keeps the windows itself."""
        probes = self._reconciler.desired.probes
        return any(probe.node_figures and probe.window is None for probe in probes)

    def take_window_report(self, probe_id: str) -> WindowReport | None:
        """Return the report over a probe's window; None if the probe does not exist any more."""
        return self.readings.windows.take(probe_id, self._uncounted)

    def newest_reports(self) -> Iterable[WindowReport]:
        """Return the reports over all windows, without taking them from a client."""
        return self.readings.windows.newest(self._uncounted)

    @property
    def sampling_ratio(self) -> float:
        """The share of the packets that is measured."""
        return self.readings.sampling_ratio

    @property
    def _uncounted(self) -> frozenset[str]:
        return frozenset(
            stage.name for stage in self.coverage if stage.state is CoverageState.UNAVAILABLE
        )

    def cgroups_of(self, probe: DesiredProbe, counters: Mapping[str, int]) -> tuple[Cgroup, ...]:
        """Return the known cgroups that a target of this probe waited for.

        Paths of the node's own cgroups are figures of the node.
        """
        known = self.readings.cgroups.among(counters)
        return known if probe.node_figures else tuple(replace(each, path="") for each in known)

    def standings(self, probe: DesiredProbe) -> Mapping[str, TargetFacts]:
        """Return the facts of a probe's targets and of their parts, by their ids."""
        facts = {target.id: self._reconciler.standing(probe, target) for target in probe.targets}
        return {**facts, **{part: facts[whole] for part, whole in probe.parts.items()}}

    # Calls of the service

    async def apply(self, desired: Desired) -> Applied:
        """Put this state in force, and return the facts of its targets.

        Raises StaleTermError, StaleGenerationError or EngineError: then the previous state is still
        in force.
        """
        async with self._lock:
            self._refuse_if_closed()
            before = self._reconciler.desired
            self._lease.enter(desired.term, before.lease_s)
            if desired.term == before.term and desired.generation < before.generation:
                raise StaleGenerationError(desired.generation, before.generation)
            admitted = admit(desired, before.names)
            try:
                with self._instruments.time_apply():
                    await self._reconciler.adopt(admitted)
            finally:
                self._wake.set()
            if desired.term != before.term:
                # A new leader takes no report of the term before, which its stream began with.
                self.readings.report_again()
            self._lease.renew()
            return self._applied()

    async def watch(self, term: int, pump: Pump) -> None:
        """Pump reports until the client disconnects; end a stream that was open before.

        Raises StaleTermError, and StreamEndedError where the agent ends it.
        """
        self._refuse_if_closed()
        in_force = self._reconciler.desired
        if in_force.lease_s and term < in_force.term:
            # Its lease may have ended just now. A stream would renew it, and the term with it.
            raise StaleTermError(term, in_force.term)
        self._lease.enter(term, in_force.lease_s)
        try:
            await self._lease.hold(pump)
        finally:
            self._wake.set()

    async def trace(self, wish: TraceWish, send: SendNews) -> None:
        """Send packets until the probe is removed or the client disconnects.

        Raises InvalidStateError, TraceBusyError, or EngineError: then nothing has changed.
        """
        async with self._lock:
            self._refuse_if_closed()
            self._reconciler.check_trace(wish)
            try:
                await self._own_trace.pause()
                self._refuse_if_closed()
                trace = await self._reconciler.begin_trace(wish)
            except BaseException:
                self._end_trace()
                raise
        log.info("tracing packets of probe %r", wish.probe_id)
        try:
            await self._pump_packets(trace, send)
        finally:
            self._end_trace()
        self._refuse_if_closed()

    async def keep(self) -> None:
        """Follow the targets, read the engine and watch the lease, until cancelled."""
        try:
            if self._own_trace.is_wanted and self._reconciler.trace is None:
                self._end_trace()
            with TargetEvents(self._resolver, self._wake) as events:
                await self._keep(events)
        finally:
            self._resolver.close()

    async def _keep(self, events: TargetEvents) -> None:
        while True:
            try:
                events.listen()
                is_woken = await self._sleep()
                async with self._lock:
                    if not self._is_closed:
                        await self._attend(is_woken=is_woken)
            except Exception:
                log.exception("unexpected error; next attempt in %g s", _RETRY_UNEXPECTED_S)
                await asyncio.sleep(_RETRY_UNEXPECTED_S)

    async def close(self) -> None:
        """End the stream and detach everything."""
        self._is_closed = True
        self._lease.end_stream(str(ShuttingDownError()))
        if self._reconciler.trace is not None:
            self._reconciler.trace.end()
        await self._own_trace.pause()
        async with self._lock:
            await self._reconciler.close()
        self.readings.close()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise ShuttingDownError

    def _applied(self) -> Applied:
        desired = self._reconciler.desired
        return Applied(
            desired.generation,
            {probe.id: self.standings(probe) for probe in desired.probes},
            desired.refused,
            self.coverage,
        )

    # Single packets

    def _end_trace(self) -> None:
        """Trace for no client any more, and for the agent itself if that is wanted."""
        self._reconciler.end_trace(None if self._is_closed else self._own_trace.begin())
        self._wake.set()

    async def _pump_packets(self, trace: Trace, send: SendNews) -> None:
        """Send the engine's packets until it ends the trace, and then the exact counts."""
        await send(self._news(trace, ()))
        await trace.has_begun.wait()
        if trace.failure is not None:
            raise trace.failure
        while packets := await self._engine.traced():
            self.readings.note_slow(trace.wish.probe_id, trace.wish.limits_ns, packets)
            await send(self._news(trace, packets))
        await send(self._news(trace, ()))

    def _news(self, trace: Trace, packets: Sequence[TracedPacket]) -> PacketNews:
        ratio = trace.lowest_ratio(self.readings.sampling_ratio)
        return PacketNews(packets, self._engine.trace_counts, ratio)

    # Between the calls

    async def _sleep(self) -> bool:
        """Wait until the next appointment, or until a call wakes the agent: then return True."""
        times = [t for t in (*self._appointments(), self.readings.next_control_at) if t is not None]
        timeout = max(min(times) - self._clock(), 0) if times else None
        try:
            # Not asyncio.wait_for(): it loses a cancellation at the end of the wait (Python 3.11).
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _appointments(self) -> tuple[float | None, ...]:
        return (self._reconciler.next_at, self.readings.next_at, self._lease_ends_at())

    async def _attend(self, *, is_woken: bool = True) -> None:
        control = self.readings.next_control_at
        if control is not None and self._clock() >= control:
            self.readings.control()
        # Following the targets costs much more than the control, which comes more often.
        if is_woken or any(t is not None and self._clock() >= t for t in self._appointments()):
            await self._follow()

    async def _follow(self) -> None:
        end = self._lease_ends_at()
        if end is not None and self._clock() >= end:
            lease_s = self._reconciler.desired.lease_s
            log.warning("no client has read reports for %g s (the lease); detaching", lease_s)
            self._lease.forget_term()
            await self._reconciler.let_go()
        else:
            await self._reconciler.attend()
        reading = self.readings.next_at
        if reading is not None and self._clock() >= reading:
            self.readings.read()

    def _lease_ends_at(self) -> float | None:
        return self._lease.ends_at(self._reconciler.desired.lease_s)


async def _discard(_: PacketNews) -> None:
    """Send it to no client."""
