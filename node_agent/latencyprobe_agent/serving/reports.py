"""The reports of one stream; each is encoded when it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.summary import PodChoice, PodReport
from latencyprobe.process.tasks import first_to_end
from latencyprobe.protocol.overhead import overhead_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.collector import ProbeFigures
from latencyprobe_agent.serving.messages import coverage_messages
from latencyprobe_agent.serving.parts import (
    MESSAGE_BYTES,
    NumberedPart,
    StateNumber,
    bundles,
    divided,
    messages,
)
from latencyprobe_agent.serving.summary_messages import (
    StatusChanges,
    frame,
    summary_report,
    with_pods,
)
from latencyprobe_agent.serving.unacknowledged import Unacknowledged
from latencyprobe_agent.serving.wishes import Requests, Wishes
from latencyprobe_agent.windows.probe_window import WindowReport

Send = Callable[[pb.Report], Awaitable[None]]


async def _no_requests() -> Requests:
    return
    yield


@dataclass(slots=True)
class _Sent:
    """The newest report over a window that was sent, and the pods that were sent in full.

    `number`: of the state in which it was taken. Parts of it may be sent in a later one.
    """

    report: WindowReport
    number: StateNumber
    in_full: set[str] = field(default_factory=set)


class ReportPump:
    """The sender of due figures to one client. `count`: called for each report with figures."""

    def __init__(
        self,
        agent: Agent,
        count: Callable[[], None],
        send: Send,
        requests: Requests | None = None,
    ) -> None:
        self._agent = agent
        self._count = count
        self._send = send
        self._requests = requests if requests is not None else _no_requests()
        self._sequence = 0
        self._coverage: tuple[StageCoverage, ...] | None = None
        self._unacknowledged = Unacknowledged()
        self._wishes = Wishes(
            self._unacknowledged.acknowledge, lambda name: name in agent.readings.windows.probe_ids
        )
        self._statuses = StatusChanges()
        self._sent: dict[str, _Sent] = {}

    async def run(self) -> None:
        """Send a report with the coverage at once, then all due figures, until cancelled."""
        try:
            await first_to_end(self._send_reports(), self._wishes.read(self._requests))
        finally:
            self._agent.readings.put_back(self._unacknowledged.rest())

    async def _send_reports(self) -> None:
        readings = self._agent.readings
        await self._send(self._report([], self._number()))
        self._unacknowledged.note(self._sequence, ())
        readings.windows.take_again()
        while True:
            await first_to_end(readings.until_due(), self._wishes.until_changed())
            await self._send_all(readings.take_figures())
            self._forget_removed_probes()
            await self._send_parts(map(self._summary_parts, readings.windows.due))
            await self._send_parts(map(self._wanted_parts, self._wishes.take_changed()))

    # Figures of an interval

    async def _send_all(self, due: list[ProbeFigures]) -> None:
        """Send these figures; if that fails, put back those that no sent message holds."""
        unsent = {figures.probe.id: figures for figures in due}
        number = self._number()
        try:
            for parts in messages(due, self._agent.standings, self._agent.cgroups_of):
                await self._send(self._report(parts, number))
                self._count()
                self._unacknowledged.note(self._sequence, _taken(unsent, parts))
        except BaseException:
            self._agent.readings.put_back(list(unsent.values()))
            raise

    # Summaries of a window

    def _summary_parts(self, probe_id: str) -> Iterable[NumberedPart]:
        """Make a probe's newest summary, with the pods that the client wants in full."""
        report = self._agent.take_window_report(probe_id)
        if report is None or report.probe.window is None:
            return ()
        sent = self._sent[probe_id] = _Sent(report, self._number())
        wholes = frozenset(report.probe.parts.values())
        standings = self._agent.standings(report.probe)
        statuses = self._statuses.take(
            probe_id, {name: each for name, each in standings.items() if name not in wholes}
        )
        default = report.probe.window.pods_in_full
        chosen = self._chosen(sent, self._wishes.choice_of(probe_id, default))
        return _with_pods(sent, summary_report(report, statuses), chosen)

    def _wanted_parts(self, probe_id: str) -> Iterable[NumberedPart]:
        """Make the pods that the client wants now, and the newest summary lacks."""
        sent = self._sent.get(probe_id)
        if sent is None or sent.report.probe.window is None:
            return ()
        default = sent.report.probe.window.pods_in_full
        missing = self._chosen(sent, self._wishes.choice_of(probe_id, default))
        if not missing:
            return ()
        return _with_pods(sent, frame(sent.report), missing)

    def _chosen(self, sent: _Sent, choice: PodChoice) -> list[PodReport]:
        """Return the pods of this choice that were not sent yet, and note them as sent."""
        uids = {score.pod_uid for score in choice.of(sent.report.summary.scores)} - sent.in_full
        sent.in_full |= uids
        return [self._named(sent, pod) for pod in sent.report.pods if pod.pod_uid in uids]

    def _named(self, sent: _Sent, pod: PodReport) -> PodReport:
        """Return a pod with the cgroups that it waited for."""
        cgroups = self._agent.cgroups_of(sent.report.probe, pod.report.counters)
        return replace(pod, report=replace(pod.report, cgroups=cgroups)) if cgroups else pod

    async def _send_parts(self, of_probes: Iterable[Iterable[NumberedPart]]) -> None:
        """Send these; each is made when the message before it is sent.

        A message has a cost of its own at the client, so probes share it.
        """
        for number, together in bundles(chain.from_iterable(of_probes)):
            await self._send(self._report(together, number))
            self._count()
            self._unacknowledged.note(self._sequence, ())

    def _forget_removed_probes(self) -> None:
        kept = self._agent.readings.windows.probe_ids
        self._wishes.keep(kept)
        self._statuses.keep(kept)
        self._sent = {name: sent for name, sent in self._sent.items() if name in kept}

    # Both

    def _number(self) -> StateNumber:
        return StateNumber(self._agent.term, self._agent.generation)

    def _report(self, probes: list[pb.ProbeReport], number: StateNumber) -> pb.Report:
        """Return the next report, of this state; it has the coverage if that has changed."""
        before, self._coverage = self._coverage, self._agent.coverage
        self._sequence += 1
        overhead = self._agent.readings.take_overhead(by_hook=self._agent.has_local_probe)
        return pb.Report(
            instance_id=self._agent.instance_id,
            generation=number.generation,
            sequence=self._sequence,
            term=number.term,
            probes=probes,
            coverage=coverage_messages(self._coverage) if self._coverage != before else (),
            overhead=overhead_to_proto(overhead),
        )


def _with_pods(sent: _Sent, begun: pb.ProbeReport, pods: list[PodReport]) -> Iterator[NumberedPart]:
    """Add pods to a report, in as many parts as it takes."""
    for part in with_pods(begun, pods, partial(frame, sent.report), MESSAGE_BYTES):
        yield NumberedPart(sent.number, part)


def _taken(unsent: dict[str, ProbeFigures], parts: Iterable[pb.ProbeReport]) -> list[ProbeFigures]:
    """Take the figures of these parts out of those that are not sent yet."""
    taken = []
    for part in parts:
        figures = unsent.pop(part.id)
        if part.more:
            figures, unsent[part.id] = divided(figures, part)
        taken.append(figures)
    return taken
