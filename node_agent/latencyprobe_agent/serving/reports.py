"""The reports of one stream; each is encoded once, when it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.collector import ProbeFigures
from latencyprobe_agent.serving.messages import coverage_messages, probe_report

# A report is of this size, or of one probe. The operator takes four times as much.
_REPORT_BYTES = 1 << 20

Send = Callable[[pb.Report], Awaitable[None]]


class ReportPump:
    """The sender of due figures to one client. `count`: called for each report with figures."""

    def __init__(self, agent: Agent, count: Callable[[], None], send: Send) -> None:
        self._agent = agent
        self._count = count
        self._send = send
        self._sequence = 0
        self._coverage: tuple[StageCoverage, ...] | None = None

    async def run(self) -> None:
        """Send a report with the coverage at once, then all due figures, until cancelled."""
        await self._send(self._report([]))
        while True:
            figures = await self._agent.readings.due_figures()
            while figures:
                figures = await self._send_some(figures)

    async def _send_some(self, figures: list[ProbeFigures]) -> list[ProbeFigures]:
        """Send as many figures as make up one report, and return the rest.

        If sending fails, all of them are put back.
        """
        try:
            probes = self._encoded(figures)
            await self._send(self._report(probes))
        except BaseException:
            self._agent.readings.put_back(figures)
            raise
        self._count()
        return figures[len(probes) :]

    def _encoded(self, figures: list[ProbeFigures]) -> list[pb.ProbeReport]:
        """Return messages of the first figures, as many as make up one report."""
        probes: list[pb.ProbeReport] = []
        size = 0
        for one in figures:
            probe = probe_report(one, self._agent.standings(one.probe))
            size += probe.ByteSize()
            if probes and size > _REPORT_BYTES:
                break
            probes.append(probe)
        return probes

    def _report(self, probes: list[pb.ProbeReport]) -> pb.Report:
        """Return the next report; it has the coverage if that has changed."""
        before, self._coverage = self._coverage, self._agent.coverage
        self._sequence += 1
        cpu_percent = self._agent.readings.take_cpu_percent()
        return pb.Report(
            instance_id=self._agent.instance_id,
            generation=self._agent.generation,
            sequence=self._sequence,
            probes=probes,
            coverage=coverage_messages(self._coverage) if self._coverage != before else (),
            overhead=pb.Overhead(cpu_percent=cpu_percent or 0, measured=cpu_percent is not None),
        )
