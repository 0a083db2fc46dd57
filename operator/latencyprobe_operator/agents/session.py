"""Sessions with one agent: each serves one connection, from the greeting to its end.

A session learns the agent's instance, opens the stream of reports and keeps the desired state
applied. Reports are decoded here; no message of the protocol goes further.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from latencyprobe import __version__
from latencyprobe.domain.summary import PodChoice
from latencyprobe.printable import bounded
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.on_demand import OnDemand
from latencyprobe.process.tasks import unless_ended
from latencyprobe.protocol.limits import check_cpu_percent
from latencyprobe.protocol.measurements import (
    MAX_NAME_LENGTH,
    PROTOCOL_VERSION,
    CorruptMessageError,
)
from latencyprobe.protocol.overhead import stopped_modules
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.acknowledgements import Acknowledgements
from latencyprobe_operator.agents.agent_facts import AgentFacts
from latencyprobe_operator.agents.calls import AgentCalls
from latencyprobe_operator.agents.messages import (
    MAX_TEXT_LENGTH,
    check_size,
    coverage_of,
    instance_of,
    reported_probe,
    slices,
    targets_by_probe,
    unknown_coverage,
)
from latencyprobe_operator.agents.misreports import Misreports
from latencyprobe_operator.agents.news import PacedNews
from latencyprobe_operator.agents.report_rate import ExcessiveReportsError, ReportRate
from latencyprobe_operator.agents.reported_summaries import is_summary, reported_summary
from latencyprobe_operator.agents.sent_states import SentStates
from latencyprobe_operator.agents.state_sync import StateSync
from latencyprobe_operator.agents.turns import Turns
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredNodeState
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import ReportedProbe, ReportSource

if TYPE_CHECKING:
    Reports = aio.StreamStreamCall[pb.WatchReportsRequest, bytes]

log = logging.getLogger(__name__)

CONNECT_S = 5.0
# Without a limit of the fleet, as in tests.
_STEPS_OF_A_TURN = 20
# More than the summaries of some probes with pods in full. The steps of such a report take some ms.
_SMALL_REPORT_BYTES = 64 << 10
APPLY_S = 60.0
_REFUSALS = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
    }
)


class VersionSkewError(Exception):
    """An agent that speaks another protocol than this operator."""

    def __init__(self, info: pb.NodeInfo) -> None:
        version = bounded(info.agent_version, MAX_NAME_LENGTH) or "of unknown version"
        super().__init__(
            f"agent {version} speaks protocol "
            f"{info.protocol_version}, operator {__version__} speaks protocol {PROTOCOL_VERSION}: "
            "bring both to one version"
        )


class LinkBrokenError(Exception):
    """The agent has ended the stream of reports, or another instance has taken its place."""


class AgentSession:
    """Sessions with one agent, one after the other.

    Large, because states, reports and wishes share one connection: a failure of one ends all.
    """

    __slots__ = (
        "_acknowledgements",
        "_backoff",
        "_facts",
        "_greetings",
        "_metrics",
        "_misreports",
        "_news",
        "_node",
        "_on_report",
        "_on_state",
        "_rate",
        "_sent",
        "_sync",
        "_turns",
    )

    def __init__(
        self,
        node: str,
        *,
        sync: StateSync,
        facts: AgentFacts,
        misreports: Misreports,
        greetings: asyncio.Semaphore,
        turns: Turns | None = None,
        clock_ns: Callable[[], int],
        term: int,
        metrics: OperatorMetrics,
        on_state: Callable[[NodeState, str], None],
        on_news: Callable[[], None],
        on_report: Callable[[str, ReportedProbe], None],
    ) -> None:
        """Begin no session yet.

        `greetings` limits the number of agents that are connected to at the same time.
        `turns` limits the reports and states that one turn of the event loop takes in and sends.
        `on_state`: the agent has applied or refused a state. `on_news`: its targets or stages have
        changed.
        """
        self._node = node
        self._sync = sync
        self._facts = facts
        self._misreports = misreports
        self._greetings = greetings
        self._turns = turns or Turns(_STEPS_OF_A_TURN)
        self._sent = SentStates(clock_ns, term)
        self._rate = ReportRate()
        self._backoff = Backoff(0.25, 15)
        self._acknowledgements = Acknowledgements()
        self._metrics = metrics
        self._on_state = on_state
        self._news = PacedNews(on_news)
        self._on_report = on_report

    async def run(self, calls: AgentCalls, until: Callable[[], Awaitable[None]]) -> None:
        """Serve one connection until `until` ends it.

        Also returns when there is nothing to measure, and the agent knows it. Raises
        VersionSkewError, LinkBrokenError, ImplausibleGenerationError, NewerTermError,
        ExcessiveReportsError and gRPC's errors.
        """
        await self._greet(calls)
        # The stream is there before the state, so that no report is missed.
        stream = calls.WatchReports()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sending = OnDemand(lambda: self._send(stream), ended)
        applying = OnDemand(lambda: self._apply_newest(calls, ended), ended)
        try:
            self._acknowledgements.open_stream(sending.start, term=self._sent.term)
            self._sync.on_change = applying.start
            applying.start()
            await unless_ended(self._listen(stream), ended, asyncio.ensure_future(until()))
        finally:
            self._sync.on_change = None
            self._acknowledgements.close_stream()
            self._news.cancel()
            await sending.close()
            await applying.close()

    def want_in_full(self, probe_uid: str, choice: PodChoice, *, at_once: bool) -> None:
        """Have the agent report these pods of a probe in full, from its next report on or now."""
        self._acknowledgements.want(probe_uid, choice, at_once=at_once)

    async def _greet(self, calls: AgentCalls) -> None:
        async with self._greetings:
            info = await calls.GetNodeInfo(pb.GetNodeInfoRequest(), timeout=CONNECT_S)
        if info.protocol_version != PROTOCOL_VERSION:
            raise VersionSkewError(info)
        if instance_of(info) != self._facts.instance_id:
            log.info(
                "agent on node %s: version %s, kernel %s, instance %s",
                self._node,
                bounded(info.agent_version, MAX_NAME_LENGTH),
                bounded(info.kernel_release, MAX_NAME_LENGTH),
                instance_of(info),
            )
            self._facts.begin_instance(instance_of(info))
        # One string for all agents of a version.
        self._facts.version = sys.intern(bounded(info.agent_version, MAX_NAME_LENGTH))
        self._take_coverage(info.coverage)

    # ------------------------------------------------------------------ desired state

    async def _apply_newest(self, calls: AgentCalls, ended: asyncio.Future[None]) -> None:
        """Have the agent apply the desired state; end the session once that is empty."""
        while not self._sync.applied:
            await self._apply(calls, self._sync.desired)
        if self._sync.idle and not ended.done():
            ended.set_result(None)

    async def _apply(self, calls: AgentCalls, state: DesiredNodeState) -> None:
        await self._turns.take()
        outgoing = self._sent.encode(state)
        self._rate.expect(outgoing.message.probes)
        began = time.monotonic()
        try:
            result = await calls.Apply(outgoing.message, timeout=APPLY_S)
        except aio.AioRpcError as error:
            if error.code() not in _REFUSALS:
                raise
            await self._take_refusal(error, state)
            return
        self._metrics.apply_times.observe(time.monotonic() - began)
        await self._turns.take()
        log.debug("agent on node %s applied generation %d", self._node, outgoing.message.generation)
        self._sent.mark_applied()
        self._rate.mark_applied(outgoing.message.probes)
        self._acknowledgements.keep([probe.key.uid for probe in state])
        self._backoff.reset()
        answered = targets_by_probe(result, outgoing.sent)
        self._facts.set_targets(state, answered, outgoing.left_out)
        self._take_coverage(result.coverage)
        self._sync.mark_applied(state)
        self._on_state(NodeState.READY, "")

    async def _take_refusal(self, error: aio.AioRpcError, state: DesiredNodeState) -> None:
        """Wait for the next attempt: soon, or when the desired state has changed."""
        message = f"the agent refuses its desired state: {describe(error)}"
        log.warning("agent on node %s: %s", self._node, message)
        self._on_state(NodeState.REJECTED, message)
        if self._sync.desired == state:
            try:
                async with asyncio.timeout(self._backoff.next()):
                    await self._sync.wait_changed()
            except TimeoutError:
                return

    # ------------------------------------------------------------------------ reports

    async def _send(self, stream: Reports) -> None:
        """Send the acknowledgements that are due."""
        while (message := self._acknowledgements.take()) is not None:
            try:
                await stream.write(message)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return  # the stream has ended: its reader gets the reason

    async def _listen(self, stream: Reports) -> None:
        """Take in reports until the stream ends; count a message that is too large, which ends it.

        Nothing keeps a report while the next one is waited for. It takes 10 to 20 KB, and an
        iterator over the stream, or a name here, would keep one of each agent.
        """
        try:
            while await self._take_received(await stream.read()):
                pass
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._misreports.note_corrupt(describe(error))
            raise
        raise LinkBrokenError("the agent ended the stream of reports")

    async def _take_received(self, received: object) -> bool:
        """Take in an encoded report; return False at the end of the stream.

        Few small ones are decoded at the same time, and all others wait as they have arrived. A
        large one is interleaved with all others, so that it does not hold them up.
        """
        if not isinstance(received, bytes):
            return False
        if len(received) > _SMALL_REPORT_BYTES:
            await self._take_encoded(received)
        else:
            async with self._turns.places:
                await self._take_encoded(received)
        return True

    async def _take_encoded(self, encoded: bytes) -> None:
        await self._turns.take()
        try:
            report = pb.Report.FromString(encoded)
        except DecodeError as error:
            self._misreports.note_corrupt(f"not a report: {error}")
            raise LinkBrokenError("the agent's stream has a message that is no report") from error
        if instance_of(report) != self._facts.instance_id:
            raise LinkBrokenError("another instance of the agent answers")
        self._sent.observe(report.term, report.generation)
        self._metrics.reports.inc()
        self._count(lambda: self._rate.take(len(encoded)))
        await self._take(report)
        covered = [p.id for p in report.probes if self._covers(p, report)]
        self._acknowledgements.acknowledge(
            report.sequence, covered, can_wait=all(map(is_summary, report.probes))
        )

    def _count(self, take: Callable[[], None]) -> None:
        try:
            take()
        except ExcessiveReportsError as error:
            self._misreports.note_excess(str(error))
            raise

    async def _take(self, report: pb.Report) -> None:
        try:
            check_size(report)
        except CorruptMessageError as error:
            self._misreports.note_corrupt(str(error))
            return
        self._count(lambda: self._rate.take_parts(len(report.probes)))
        if report.HasField("overhead"):
            self._take_overhead(report.overhead)
        changed = self._take_coverage(report.coverage)
        for index, message in enumerate(report.probes):
            if index:
                await self._turns.take()
            if self._covers(message, report):
                changed |= await self._take_probe(message, report)
        if changed:
            self._news.note()

    def _covers(self, probe: pb.ProbeReport, report: pb.Report) -> bool:
        """Decide whether a report is one on the probe as it is now."""
        return self._sent.covers(probe.id, report.term, report.generation)

    async def _take_probe(self, message: pb.ProbeReport, report: pb.Report) -> bool:
        """Take in a report on one probe; return whether a target's state has changed.

        A large report is taken in slices, so that other agents do not wait for it.
        """
        changed = False
        for part in slices(message):
            # The state may have become another one since then.
            if self._covers(part, report):
                changed |= self._take_part(part)
            if part.more:
                await asyncio.sleep(0)
        return changed

    def _take_part(self, message: pb.ProbeReport) -> bool:
        try:
            probe = self._decode(message)
            self._misreports.note_probe(probe)
            if probe.corruption:
                return False
            changed = self._facts.take_targets(probe)
            self._on_report(self._node, probe)
        except Exception as error:  # noqa: BLE001
            # Whatever an agent sent to cause this, it costs that report alone.
            self._misreports.note_unexpected(error)
            return False
        return changed

    def _decode(self, message: pb.ProbeReport) -> ReportedProbe:
        source = ReportSource(self._facts.instance_id, self._acknowledgements.streams)
        if is_summary(message):
            return reported_summary(message, self._sent.asked(), self._sent.pods, source)
        return replace(reported_probe(message, self._sent.asked()), source=source)

    def _take_overhead(self, overhead: pb.Overhead) -> None:
        try:
            check_cpu_percent(overhead.cpu_percent)
        except CorruptMessageError as error:
            self._misreports.note_corrupt(str(error))
            return
        if overhead.measured:
            self._facts.cpu_percent = overhead.cpu_percent
        self._facts.stopped_modules = stopped_modules(overhead.stopped_modules)

    def _take_coverage(self, messages: Sequence[pb.StageCoverage]) -> bool:
        """Take in the coverage, if the message has one; return whether it has changed."""
        if not messages:
            return False
        try:
            coverage = coverage_of(messages)
        except CorruptMessageError as error:
            self._misreports.note_corrupt(str(error))
            return False
        before = self._facts.coverage, self._facts.unknown
        self._facts.coverage = coverage
        self._facts.unknown = unknown_coverage(messages, coverage)
        return (self._facts.coverage, self._facts.unknown) != before


def describe(error: aio.AioRpcError) -> str:
    """Return a gRPC error in one line."""
    details = bounded(error.details() or "no details", MAX_TEXT_LENGTH)
    return f"{error.code().name}: {details}"
