"""A fleet that listens to one agent, which may be faulty or hostile."""

from __future__ import annotations

from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import ReportedProbe
from tests.unit.operator_.waiting import until
from tools.fakes.agent import FakeAgent, measurement
from tools.fakes.samples import pod, probe_spec, target_id

UID = "uid-checkout"
NODE = "node-a"
SOUND = measurement(1000)


class Listening:
    """A fleet that is connected to one agent, and what has arrived from that."""

    def __init__(self, tls: ClientTlsFiles, agent: FakeAgent) -> None:
        self.agent = agent
        self.reports: list[ReportedProbe] = []
        self.changes = 0
        self.metrics = OperatorMetrics()
        self.failure: Exception | None = None
        self.fleet = Fleet(
            credentials=tls.credentials,
            on_report=self.take,
            on_change=self.note_change,
            metrics=self.metrics,
        )

    def note_change(self, _: str) -> None:
        self.changes += 1

    def take(self, _: str, report: ReportedProbe) -> None:
        if self.failure:
            raise self.failure
        self.reports.append(report)

    @property
    def corrupt(self) -> float:
        """The corrupt parts that were counted."""
        value = self.metrics.registry.get_sample_value(
            "latencyprobe_operator_corrupt_reports_total", {"agent_node": NODE}
        )
        return value or 0.0

    async def connect(self) -> None:
        """Bring a state of pod a to the agent."""
        states = DesiredStates()
        states.set_probe(probe_spec(), [pod("a")])
        self.fleet.open()
        self.fleet.want(NODE, states.of_node(NODE))
        self.fleet.set_agent(NODE, AgentEndpoint(self.agent.address))
        await self.ready()

    async def ready(self) -> None:
        """Wait until the link is ready, and listens."""
        await until(
            lambda: self.fleet.view(NODE).state is NodeState.READY and self.agent.listeners,
            what=lambda: self.fleet.view(NODE),
        )

    def send(self, report: pb.Report) -> None:
        """Have the agent send this in its present instance and generation."""
        report.instance_id = self.agent.instance_id
        report.generation = self.agent.applied[-1].generation
        self.agent.send(report)

    async def heard(self, count: int = 1) -> ReportedProbe:
        """Wait for so many reports; return the last."""
        await until(lambda: len(self.reports) >= count, what=lambda: self.fleet.view(NODE))
        return self.reports[-1]

    async def goes_on(self) -> None:
        """Check that the link is as it was, and takes a sound report."""
        count = len(self.reports) + 1
        self.agent.report_deltas(UID, {target_id("a"): SOUND})
        report = await self.heard(count)
        assert [target.measurement for target in report.targets] == [SOUND]
        assert self.fleet.view(NODE).state is NodeState.READY
