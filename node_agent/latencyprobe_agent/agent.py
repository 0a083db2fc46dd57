"""The agent of one node: keeps the kernel side equal to what the client wants, and reports.

One lock orders everything that touches the engine: applying, following targets that come and go,
reading. Reports are made from the collector's accounts, without the lock, so that an Apply that
compiles never delays a stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from latencyprobe import __version__
from latencyprobe.domain.measurement import NodeMeasurement
from latencyprobe.domain.packets import TracedPacket
from latencyprobe.domain.stages import Module
from latencyprobe.domain.targets import TargetState
from latencyprobe.process.tasks import first_to_end
from latencyprobe.protocol.measurements import PROTOCOL_VERSION
from latencyprobe.protocol.packets import counts_to_proto, packet_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.collector import Collector, Moment, OverheadMeter, ProbeFigures
from latencyprobe_agent.desired import (
    NOTHING_DESIRED,
    Desired,
    Probe,
    Target,
    admit,
)
from latencyprobe_agent.evidence.namespaces import Namespace
from latencyprobe_agent.evidence.source import EvidenceSource
from latencyprobe_agent.kernel.contract import Engine, EngineError, Overhead, SlotSpec
from latencyprobe_agent.plan import (
    SlotKey,
    SlotTable,
    TargetKey,
    assignment,
    homes,
    namespaces,
    overcommitted,
    owners,
    wanted_modules,
    wanted_slots,
)
from latencyprobe_agent.sampling import Sampling, strictest
from latencyprobe_agent.serving.messages import (
    coverage_messages,
    probe_report,
    refused_statuses,
    status_message,
)
from latencyprobe_agent.serving.metrics import Metrics
from latencyprobe_agent.targets.facts import Facts, failed
from latencyprobe_agent.targets.resolver import Resolver
from latencyprobe_agent.tracing import Trace, TraceWish, check_wish

log = logging.getLogger(__name__)

_LONGEST_READING_S = 10.0
_RETRY_ENGINE_S = 5.0
_RETRY_UNEXPECTED_S = 1.0
# Well below the most that a client takes in (wire.MAX_MESSAGE_BYTES), with room for one probe more.
_REPORT_BYTES = 1 << 20

Send = Callable[[pb.Report], Awaitable[None]]
SendEvents = Callable[[pb.TraceEvents], Awaitable[None]]


class StaleGenerationError(Exception):
    """A desired state older than the one in force."""

    def __init__(self, offered: int, applied: int) -> None:
        self.offered, self.applied = offered, applied
        super().__init__(
            f"generation {offered} is older than {applied}, which was applied: "
            "fetch the newest state and apply that"
        )


class ShuttingDownError(Exception):
    """Asked too late."""

    def __init__(self) -> None:
        super().__init__("the agent is shutting down")


class TraceBusyError(Exception):
    """There is a trace already."""

    def __init__(self, probe_id: str) -> None:
        self.probe_id = probe_id
        super().__init__(
            f"packets of probe {probe_id!r} are being traced already, and there is one trace at a "
            "time: end that one, or wait for its end"
        )


class StreamEndedError(Exception):
    """A report stream that the agent has ended: another one came, or the agent goes."""

    def __init__(self, message: str, *, superseded: bool) -> None:
        self.superseded = superseded
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What does not change while the agent runs."""

    node_name: str
    kernel_release: str
    architecture: str
    kernel_types: str
    cgroup_version: str


class _Stream:
    """The one open stream of reports, and the way to end it from outside."""

    def __init__(self) -> None:
        self._end: asyncio.Future[StreamEndedError] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()

    def end(self, reason: StreamEndedError) -> None:
        if not self._end.done():
            self._end.set_result(reason)

    async def run(self, pump: Coroutine[object, object, None]) -> None:
        """Pump until it fails, the client goes (cancellation), or somebody ends the stream."""
        try:
            await first_to_end(self._ended(), pump)
        finally:
            self.closed.set()

    async def _ended(self) -> NoReturn:
        raise await self._end


class Agent:
    """What the gRPC service is a face of."""

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        node: NodeFacts,
        metrics: Metrics,
        evidence: EvidenceSource,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance_id = str(uuid.uuid4())
        self._engine = engine
        self._resolver = resolver
        self._node = node
        self._metrics = metrics
        self._evidence = evidence
        self._namespaces: Mapping[int, Namespace] = {}
        self._clock = clock
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._figures_due = asyncio.Event()
        self._desired = NOTHING_DESIRED
        self._modules: frozenset[Module] | None = frozenset()
        self._is_tracing = False
        self._trace: Trace | None = None
        self._slots = SlotTable()
        self._refused: Mapping[SlotKey, str] = {}
        self._assigned: Mapping[int, SlotSpec] | None = {}
        self._collector = Collector()
        self._overhead = OverheadMeter()
        self._figure: int | None = None
        self._sampling = Sampling()
        self._reading = self._now()
        self._retry_at: float | None = None
        self._stream: _Stream | None = None
        self._lonely_since = clock()
        self._is_closed = False

    # What the service asks for

    def node_info(self) -> pb.NodeInfo:
        """What this node is, and which stages it can measure."""
        return pb.NodeInfo(
            agent_version=__version__,
            protocol_version=PROTOCOL_VERSION,
            instance_id=self.instance_id,
            node_name=self._node.node_name,
            kernel_release=self._node.kernel_release,
            architecture=self._node.architecture,
            kernel_types=self._node.kernel_types,
            cgroup_version=self._node.cgroup_version,
            coverage=coverage_messages(self._engine.coverage),
        )

    async def apply(self, desired: Desired) -> pb.ApplyResult:
        """Make this state the one in force, and say how its targets stand.

        Raises StaleGenerationError or EngineError: then the state before is still in force.
        """
        async with self._lock:
            if self._is_closed:
                raise ShuttingDownError
            if desired.generation < self._desired.generation:
                raise StaleGenerationError(desired.generation, self._desired.generation)
            admitted = admit(desired, self._desired.names)
            with self._metrics.apply_seconds.time():
                await self._adopt(admitted)
            self._lonely_since = self._clock()
            return self._apply_result()

    async def watch(self, send: Send) -> None:
        """Send reports until the client goes; ends a stream that was open before.

        Raises StreamEndedError where the agent ends it.
        """
        if self._is_closed:
            raise ShuttingDownError
        before, self._stream = self._stream, _Stream()
        stream = self._stream
        try:
            if before is not None:
                before.end(StreamEndedError("another client listens now", superseded=True))
                await before.closed.wait()
            await stream.run(self._pump(send))
        finally:
            stream.closed.set()
            if self._stream is stream:
                self._stream = None
                self._lonely_since = self._clock()
                self._wake.set()

    async def trace(self, wish: TraceWish, send: SendEvents) -> None:
        """Send packets one by one until the probe or the client goes.

        Raises InvalidStateError, TraceBusyError, or EngineError: then nothing has changed.
        """
        async with self._lock:
            if self._is_closed:
                raise ShuttingDownError
            if self._trace is not None:
                raise TraceBusyError(self._trace.wish.probe_id)
            check_wish(wish, self._desired)
            trace = self._trace = Trace(wish)
            self._engine.trace(None)  # one that a client left may not have been taken out yet
            if trace.goes_on(self._desired):
                await self._begin_trace(trace)
        log.info("tracing packets of probe %r", trace.wish.probe_id)
        try:
            await self._pump_packets(trace, send)
        finally:
            self._trace = None  # `keep` takes it out of the kernel
            self._wake.set()
        if self._is_closed:
            raise ShuttingDownError

    async def _begin_trace(self, trace: Trace) -> None:
        try:
            await self._realise(self._desired)
        except EngineError as error:
            trace.end(error)
            await self._restore(self._desired)

    async def keep(self) -> None:
        """Follow the targets, read the engine and watch the lease, until cancelled."""
        while True:
            await self._sleep()
            try:
                async with self._lock:
                    if not self._is_closed:
                        await self._attend()
            except Exception:
                log.exception("unexpected: going on in %g s", _RETRY_UNEXPECTED_S)
                await asyncio.sleep(_RETRY_UNEXPECTED_S)

    async def close(self) -> None:
        """End the stream and detach everything."""
        self._is_closed = True
        if self._stream is not None:
            self._stream.end(StreamEndedError(str(ShuttingDownError()), superseded=False))
        if self._trace is not None:
            self._trace.end()
        async with self._lock:
            await self._engine.close()
        self._evidence.close()
        self._metrics.show_modules(())

    # Desired state

    async def _adopt(self, desired: Desired) -> None:
        """Put a state in force; where the engine refuses, the one before."""
        before = self._desired
        self._resolver.track(desired.selectors)
        try:
            await self._realise(desired)
        except EngineError:
            await self._restore(before)
            raise
        finally:
            self._wake.set()
        log.info(
            "generation %d in force: %d probes, %d targets, %d targets refused",
            desired.generation,
            len(desired.probes),
            len(desired.targets),
            sum(map(len, desired.refused.values())),
        )

    async def _restore(self, before: Desired) -> None:
        self._modules = None
        self._resolver.track(before.selectors)
        try:
            await self._realise(before)
        except EngineError as error:
            log.warning("the state before can't be restored either: %s", error)
            self._retry_at = self._clock() + _RETRY_ENGINE_S

    async def _realise(self, desired: Desired) -> None:
        """Make the engine equal to the state and the facts; the order loses no figures.

        What was measured until now is read for whom it was measured; a slot that is given up is
        read once more after the kernel has left it, before its number serves anybody else.
        """
        asked = self._now()  # a first report is due an interval after this, however long it takes
        facts = self._resolver.facts
        trace = self._trace if self._trace is not None and self._trace.goes_on(desired) else None
        if trace is None:
            self._engine.trace(None)
        trace = await self._load_for(trace, wanted_modules(desired, facts))
        self._read()
        refused = overcommitted(desired, facts, self._slots.numbers, self._slots.size)
        wanted = tuple(key for key in wanted_slots(desired, facts) if key not in refused)
        self._slots.release_all_but(wanted)
        if self._slots.draining:
            self._assign(assignment(self._slots.numbers, facts))
            self._read()
            self._slots.drained()
        self._slots.allot(wanted)
        self._refused = refused
        self._assign(assignment(self._slots.numbers, facts))
        self._move(homes(desired, facts, self._slots.numbers), namespaces(facts))
        if trace is not None:
            self._engine.trace(trace.spec(desired, self._slots.numbers))
            trace.has_begun.set()
        self._collector.follow(desired, asked)
        self._collector.own(owners(desired, self._slots.numbers))
        self._desired = desired
        self._figure = None  # a new budget judges the last figure anew
        self._retry_at = None
        self._show_targets()

    def _move(
        self, new: Mapping[TargetKey, frozenset[int]], found: Mapping[int, Namespace]
    ) -> None:
        """Have the targets live here from now on.

        What was counted until now where one comes or goes is for those who lived there.
        """
        self._namespaces = {**self._namespaces, **found}
        self._gather(self._collector.moved(new))
        self._collector.settle(new)
        self._namespaces = found
        self._evidence.keep(frozenset().union(*new.values()))

    async def _load_for(self, trace: Trace | None, modules: frozenset[Module]) -> Trace | None:
        """Load with what the trace needs; where the kernel refuses that alone, end the trace."""
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
        if (modules, tracing) == (self._modules, self._is_tracing):
            return
        self._modules = None
        await self._engine.use(modules, tracing=tracing)
        self._modules, self._is_tracing = modules, tracing
        self._metrics.show_modules(modules)

    def _assign(self, slots: Mapping[int, SlotSpec]) -> None:
        if slots != self._assigned:
            self._assigned = None
            self._engine.assign(slots)
            self._assigned = slots

    # Following what changes by itself

    async def _sleep(self) -> None:
        """Until something is to be done."""
        times = [t for t in self._appointments() if t is not None]
        timeout = max(min(times) - self._clock(), 0) if times else None
        try:
            await asyncio.wait_for(self._wake.wait(), timeout)
        except TimeoutError:
            return
        self._wake.clear()

    def _appointments(self) -> tuple[float | None, ...]:
        return (self._resolver.next_look, self._next_reading(), self._lease_ends(), self._retry_at)

    async def _attend(self) -> None:
        now = self._clock()
        if (end := self._lease_ends()) is not None and now >= end:
            log.warning(
                "nobody has listened for %g s (the lease): detaching all", self._desired.lease_s
            )
            await self._try(NOTHING_DESIRED, adopt=True)
        elif self._resolver.refresh() or self._is_retry_due(now) or self._is_trace_over():
            await self._try(self._desired, adopt=False)
        reading = self._next_reading()
        if reading is not None and self._clock() >= reading:
            self._read()

    def _is_retry_due(self, now: float) -> bool:
        return self._retry_at is not None and now >= self._retry_at

    def _is_trace_over(self) -> bool:
        """Whether the programs still have what a trace needs, for none."""
        return self._is_tracing and self._trace is None

    async def _try(self, desired: Desired, *, adopt: bool) -> None:
        """Realise with nobody there to be told of trouble: log it, and try again later."""
        try:
            await (self._adopt(desired) if adopt else self._realise(desired))
        except EngineError as error:
            log.warning("%s; next attempt in %g s", error, _RETRY_ENGINE_S)
            self._retry_at = self._clock() + _RETRY_ENGINE_S

    def _lease_ends(self) -> float | None:
        if not self._desired.lease_s or self._stream is not None:
            return None
        return self._lonely_since + self._desired.lease_s

    def _next_reading(self) -> float | None:
        """When a probe is due; where one is overdue (nobody takes it), in a shortest interval."""
        due, interval = self._collector.next_due, self._collector.shortest_interval
        if due is None or interval is None:
            return None
        read_at = self._reading.monotonic
        return min(max(due, read_at + interval), read_at + _LONGEST_READING_S)

    def _read(self) -> None:
        """Take a reading into the accounts, and tell the stream."""
        before, self._reading = self._reading, self._now()
        self._collector.add(self._engine.read())
        self._collector.add_node(self._engine.read_node())
        self._collector.add_node(NodeMeasurement(counters=self._evidence.of_node()))
        self._gather(self._collector.due_namespaces(self._reading))
        overhead = self._engine.overhead()
        self._overhead.note(overhead.cpu_percent, self._reading.monotonic - before.monotonic)
        self._metrics.reads.inc()
        self._metrics.show_program_cpu(overhead.cpu_percent)
        self._figures_due.set()
        self._govern(overhead)

    def _gather(self, inodes: Iterable[int]) -> None:
        """Take what was counted in these network namespaces into the accounts."""
        found = (self._namespaces[inode] for inode in inodes if inode in self._namespaces)
        self._collector.add_netns(self._evidence.of_namespaces(found))

    def _govern(self, overhead: Overhead) -> None:
        """Look at fewer packets, or at more again, as the budget says."""
        if overhead.cpu_percent is None or overhead.figure == self._figure:
            return
        self._figure = overhead.figure
        budget = strictest(probe.max_cpu_percent for probe in self._desired.probes)
        before, self._sampling = self._sampling, self._sampling.after(overhead.cpu_percent, budget)
        if self._sampling.shift != before.shift:
            log.info(
                "programs take %.1f %% of a core, the budget is %g %%: measuring 1 packet in %d",
                overhead.cpu_percent,
                budget,
                1 << self._sampling.shift,
            )
            self._engine.sample(self._sampling.shift)

    def _now(self) -> Moment:
        return Moment(self._clock(), time.time_ns())

    # Packets one by one

    async def _pump_packets(self, trace: Trace, send: SendEvents) -> None:
        """Send what the engine tells of until it ends the trace, and then the exact counts."""
        await send(self._trace_events(trace, ()))
        await trace.has_begun.wait()
        if trace.failure is not None:
            raise trace.failure
        while packets := await self._engine.traced():
            await send(self._trace_events(trace, packets))
        await send(self._trace_events(trace, ()))

    def _trace_events(self, trace: Trace, packets: Sequence[TracedPacket]) -> pb.TraceEvents:
        return pb.TraceEvents(
            packets=map(packet_to_proto, packets),
            counts=counts_to_proto(
                self._engine.trace_counts, trace.lowest_ratio(2.0**-self._sampling.shift)
            ),
        )

    # Reports

    async def _pump(self, send: Send) -> None:
        """The life of one stream: a report with the coverage at once, then whatever is due."""
        sequence = 1
        coverage = self._engine.coverage
        await send(self._report(sequence, [], with_coverage=True))
        while True:
            figures = await self._due_figures()
            while figures:
                some, figures = self._split(figures)
                with_coverage = coverage != self._engine.coverage
                coverage = self._engine.coverage
                sequence += 1
                delivered = False
                try:
                    await send(self._report(sequence, some, with_coverage=with_coverage))
                    delivered = True
                finally:
                    if not delivered:
                        self._collector.put_back([*some, *figures])
                self._metrics.reports.inc()

    async def _due_figures(self) -> list[ProbeFigures]:
        while not self._collector.is_due(self._reading):
            self._figures_due.clear()
            await self._figures_due.wait()
        return self._collector.take(self._reading)

    def _split(self, figures: list[ProbeFigures]) -> tuple[list[ProbeFigures], list[ProbeFigures]]:
        """As many as make up one report, and the rest."""
        size = 0
        for index, one in enumerate(figures):
            if size >= _REPORT_BYTES:
                return figures[:index], figures[index:]
            size += self._probe_report(one).ByteSize()
        return figures, []

    def _report(
        self, sequence: int, figures: list[ProbeFigures], *, with_coverage: bool
    ) -> pb.Report:
        cpu_percent = self._overhead.take()
        return pb.Report(
            instance_id=self.instance_id,
            generation=self._desired.generation,
            sequence=sequence,
            probes=[self._probe_report(one) for one in figures],
            coverage=coverage_messages(self._engine.coverage) if with_coverage else (),
            overhead=pb.Overhead(cpu_percent=cpu_percent or 0, measured=cpu_percent is not None),
        )

    def _probe_report(self, figures: ProbeFigures) -> pb.ProbeReport:
        statuses = {
            target.id: status_message(target, self._standing(figures.probe, target))
            for target in figures.probe.targets
        }
        return probe_report(figures, statuses)

    def _apply_result(self) -> pb.ApplyResult:
        statuses = {
            probe.id: [status_message(t, self._standing(probe, t)) for t in probe.targets]
            for probe in self._desired.probes
        }
        for probe_id, refused in refused_statuses(self._desired.refused).items():
            statuses.setdefault(probe_id, []).extend(refused)
        return pb.ApplyResult(
            generation=self._desired.generation,
            probes=[pb.ProbeStatus(id=name, targets=each) for name, each in statuses.items()],
            coverage=coverage_messages(self._engine.coverage),
        )

    def _standing(self, probe: Probe, target: Target) -> Facts:
        """How a target of a probe stands: as its facts, unless there was no slot for it."""
        refusal = self._refused.get(SlotKey(target.selector, probe.socket_filter))
        return failed(refusal) if refusal else self._resolver.facts_of(target.selector)

    def _show_targets(self) -> None:
        self._metrics.show_targets(
            Counter(self._standing(p, t).state for p, t in self._desired.targets)
            + Counter({TargetState.FAILED: sum(map(len, self._desired.refused.values()))})
        )
