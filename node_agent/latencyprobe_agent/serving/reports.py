"""The reports of one stream; each is encoded when it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.collector import ProbeFigures
from latencyprobe_agent.serving.messages import coverage_messages
from latencyprobe_agent.serving.parts import messages, without

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
            await self._send_all(await self._agent.readings.due_figures())

    async def _send_all(self, due: list[ProbeFigures]) -> None:
        """Send these figures; if that fails, put back those that no sent message holds."""
        unsent = {figures.probe.id: figures for figures in due}
        try:
            for parts in messages(due, self._agent.standings):
                await self._send(self._report(parts))
                self._count()
                for part in parts:
                    figures = unsent.pop(part.id)
                    if part.more:
                        unsent[part.id] = without(figures, part)
        except BaseException:
            self._agent.readings.put_back(list(unsent.values()))
            raise

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
