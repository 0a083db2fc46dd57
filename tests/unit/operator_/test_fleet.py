"""The fleet against agents that speak the real protocol over real TLS."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from latencyprobe.domain.fairness import MAX_PROBES
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents import session
from latencyprobe_operator.agents.credentials import ClientTlsFiles, Credentials
from latencyprobe_operator.agents.disconnected_nodes import AgentConnection
from latencyprobe_operator.agents.fleet import Fleet
from latencyprobe_operator.agents.generations import Generations, ImplausibleGenerationError
from latencyprobe_operator.agents.link import AgentEndpoint
from latencyprobe_operator.agents.renewal import Renewal
from latencyprobe_operator.api.status_fields import NodeState as State
from latencyprobe_operator.desired_state import NO_STATE, DesiredNodeState, DesiredStates
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.observed_state import ATTACHED, ReportedProbe, TargetStatus
from latencyprobe_operator.probes.facts import NodeFacts
from latencyprobe_operator.probes.nodes import node_facts
from tests.unit.operator_.waiting import until
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority, FakeAgent, measurement
from tools.fakes.samples import pod, probe_spec, target_id

UID = "uid-checkout"


class Ears:
    """Hears what agents say."""

    def __init__(self) -> None:
        self.reports: list[ReportedProbe] = []
        self.changes = 0

    def on_report(self, node: str, report: ReportedProbe) -> None:
        """Keep it."""
        self.reports.append(report)

    def on_agent_change(self, node: str) -> None:
        """Count it."""
        self.changes += 1


def fleet_of(credentials: Credentials, ears: Ears, **options: Any) -> Fleet:
    """A fleet that these ears hear."""

    def hear(node: str, report: ReportedProbe) -> None:
        ears.on_report(node, report)

    return Fleet(
        credentials=credentials,
        on_report=hear,
        on_change=ears.on_agent_change,
        metrics=OperatorMetrics(),
        **options,
    )


def state_of(*pods: str, **spec: Any) -> DesiredNodeState:
    """The desired state of a node with these pods."""
    states = DesiredStates()
    states.set_probe(probe_spec(**spec), [pod(name) for name in pods])
    return states.of_node("node-a")


@pytest.fixture
def ears() -> Ears:
    """Who listens to the fleet."""
    return Ears()


@pytest.fixture
async def agent(agent_tls: ClientTlsFiles) -> AsyncIterator[FakeAgent]:
    """A running agent."""
    agent = FakeAgent(agent_tls)
    await agent.start()
    yield agent
    await agent.stop()


@pytest.fixture
async def fleet(operator_tls: ClientTlsFiles, ears: Ears) -> AsyncIterator[Fleet]:
    """An open fleet that knows no agent."""
    fleet = fleet_of(operator_tls.credentials, ears)
    fleet.open()
    yield fleet
    await fleet.close()


async def connect(fleet: Fleet, agent: FakeAgent, state: DesiredNodeState) -> None:
    """Bring this state to this agent, and wait until it has it."""
    fleet.want("node-a", state)
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await until(
        lambda: fleet.view("node-a").state is State.READY and agent.listeners,
        what=lambda: fleet.view("node-a"),
    )


async def test_the_state_is_applied_and_its_targets_are_known(
    fleet: Fleet, agent: FakeAgent
) -> None:
    state = state_of("a", "b", filter={"ports": [443]})
    await connect(fleet, agent, state)

    (probe,) = agent.applied[-1].probes
    assert (probe.id, probe.name) == (UID, "shop/checkout")
    assert (list(probe.modules), list(probe.filter.ports)) == (["rx", "tx", "tcp"], [443])
    assert (probe.interval.ToSeconds(), probe.max_cpu_percent) == (10, 1)
    assert agent.target_ids == [target_id("a"), target_id("b")]
    assert probe.targets[0].container.container_id == "containerd://a-server-1"
    assert agent.applied[-1].lease.ToSeconds() == 300
    assert fleet.view("node-a").statuses_of(UID, state[0].targets) == [ATTACHED, ATTACHED]


def operators_tasks() -> list[str]:
    """The names of the tasks that run code of the operator; gRPC's have no such code."""
    coroutines = {task.get_name(): task.get_coro() for task in asyncio.all_tasks()}
    return sorted(
        name
        for name, each in coroutines.items()
        if inspect.iscoroutine(each) and "latencyprobe_operator" in each.cr_code.co_filename
    )


async def test_a_connected_agent_costs_one_task_while_nothing_happens(
    fleet: Fleet, agent: FakeAgent, ears: Ears
) -> None:
    idle = ["agent on node-a", "renewed certificates"]
    await connect(fleet, agent, state_of("a"))
    await until(lambda: operators_tasks() == idle, what=operators_tasks)

    agent.report(UID, {target_id("a"): measurement(1000)})
    fleet.want("node-a", state_of("a", "b"))
    await until(lambda: ears.reports and len(agent.applied) > 1, what=lambda: agent.applied)
    await until(lambda: operators_tasks() == idle, what=operators_tasks)


async def test_targets_and_coverage_of_many_agents_are_kept_once(
    fleet: Fleet, agent: FakeAgent, agent_tls: ClientTlsFiles
) -> None:
    second = FakeAgent(agent_tls)
    await second.start()
    state = state_of("a", "b")
    for node, each in (("node-a", agent), ("node-b", second)):
        each.coverage = [
            pb.StageCoverage(
                name="rx.total", state=pb.StageCoverage.ACTIVE, hook="tp_btf/tcp_probe"
            )
        ]
        fleet.want(node, state)
        fleet.set_agent(node, AgentEndpoint(each.address))
    await until(lambda: fleet.states()[State.READY] == 2, what=fleet.states)
    one, other = fleet.view("node-a"), fleet.view("node-b")
    await second.stop()

    assert one.coverage is other.coverage
    assert [stage.hook for stage in one.coverage.values()] == ["tp_btf/tcp_probe"]
    assert one.applied[UID] is other.applied[UID] is state[0].targets
    assert (one.others, other.others) == ({}, {})


async def test_connections_are_those_of_agents_and_of_nodes_that_need_one(
    fleet: Fleet, agent: FakeAgent
) -> None:
    await connect(fleet, agent, state_of("a"))
    fleet.want("node-b", state_of("a"))
    fleet.want("node-c", NO_STATE)
    expected = {"node-a": AgentConnection(State.READY), "node-b": AgentConnection(State.NO_AGENT)}
    assert fleet.connections() == expected

    fleet.want("node-a", state_of("a", "b"))
    assert fleet.view("node-a").state is State.ATTACHING
    assert fleet.connections() == expected


async def test_a_change_is_applied_whole_under_a_higher_generation(
    fleet: Fleet, agent: FakeAgent
) -> None:
    await connect(fleet, agent, state_of("a"))
    for pods in (["a", "b"], ["b"]):
        fleet.want("node-a", state_of(*pods))
        assert await fleet.settle(["node-a"], timeout_s=5)

    assert agent.target_ids == [target_id("b")]
    generations = [state.generation for state in agent.applied]
    assert generations == sorted(set(generations))


async def test_an_equal_state_is_not_applied_again(fleet: Fleet, agent: FakeAgent) -> None:
    await connect(fleet, agent, state_of("a"))
    fleet.want("node-a", state_of("a"))

    assert await fleet.settle(["node-a"], timeout_s=1)
    assert len(agent.applied) == 1


async def test_reports_arrive(fleet: Fleet, agent: FakeAgent, ears: Ears) -> None:
    await connect(fleet, agent, state_of("a"))
    agent.report_deltas(UID, {target_id("a"): measurement(1000)})

    await until(lambda: ears.reports, what=lambda: agent.listeners)
    (target,) = ears.reports[0].targets
    assert list(target.measurement.stages) == ["rx.total"]


async def test_a_report_from_before_another_filter_is_left_out(
    fleet: Fleet, agent: FakeAgent, ears: Ears
) -> None:
    await connect(fleet, agent, state_of("a"))
    old = agent.applied[-1].generation
    fleet.want("node-a", state_of("a", filter={"ports": [443]}))
    await fleet.settle(["node-a"], timeout_s=5)
    agent.report(UID, {target_id("a"): measurement(1)}, generation=old)
    agent.report(UID, {target_id("a"): measurement(1)})

    await until(lambda: ears.reports, what=lambda: agent.listeners)
    assert len(ears.reports) == 1


async def test_a_report_from_before_another_pod_came_counts(
    fleet: Fleet, agent: FakeAgent, ears: Ears
) -> None:
    await connect(fleet, agent, state_of("a"))
    old = agent.applied[-1].generation
    fleet.want("node-a", state_of("a", "b"))
    await fleet.settle(["node-a"], timeout_s=5)
    agent.report(UID, {target_id("a"): measurement(1)}, generation=old)

    await until(lambda: ears.reports, what=lambda: agent.listeners)


async def test_an_agent_that_was_away_gets_the_whole_state_again(
    fleet: Fleet, agent: FakeAgent, ears: Ears
) -> None:
    await connect(fleet, agent, state_of("a"))
    await agent.stop()
    await until(
        lambda: fleet.view("node-a").state is State.UNREACHABLE, what=lambda: fleet.view("node-a")
    )
    assert "UNAVAILABLE" in fleet.view("node-a").message
    fleet.want("node-a", state_of("a", "b"))
    agent.instance_id = "second"
    agent.applied.clear()
    await agent.start()

    await until(
        lambda: fleet.view("node-a").state is State.READY, what=lambda: fleet.view("node-a")
    )
    assert agent.target_ids == [target_id("a"), target_id("b")]


async def test_a_new_instance_at_the_old_address_gets_the_state_too(
    fleet: Fleet, agent: FakeAgent
) -> None:
    await connect(fleet, agent, state_of("a"))
    agent.instance_id = "second"
    agent.send(pb.Report(instance_id="second"))

    await until(lambda: len(agent.applied) == 2, what=lambda: fleet.view("node-a"))


async def test_an_agent_ahead_of_our_clock_is_overtaken(
    operator_tls: ClientTlsFiles, agent: FakeAgent, ears: Ears
) -> None:
    ticks = itertools.count(1000)
    agent.applied.append(pb.DesiredState(generation=2000))
    fleet = fleet_of(operator_tls.credentials, ears, clock_ns=lambda: next(ticks))
    fleet.open()
    fleet.want("node-a", state_of("a"))
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await until(
        lambda: fleet.view("node-a").state is State.REJECTED, what=lambda: fleet.view("node-a")
    )
    agent.send(pb.Report(instance_id=agent.instance_id, generation=2000))

    await until(
        lambda: fleet.view("node-a").state is State.READY, what=lambda: fleet.view("node-a")
    )
    assert agent.applied[-1].generation == 2001
    await fleet.close()


@pytest.mark.parametrize("generation", [2**64 - 1, 2**64 - 3, 2**63, 4 * 10**18])
async def test_an_implausible_generation_disables_only_the_agent_that_reports_it(
    fleet: Fleet, agent: FakeAgent, agent_tls: ClientTlsFiles, generation: int
) -> None:
    liar = FakeAgent(agent_tls)
    await liar.start()
    await connect(fleet, agent, state_of("a"))
    fleet.want("node-b", state_of("a"))
    fleet.set_agent("node-b", AgentEndpoint(liar.address))
    await until(
        lambda: fleet.view("node-b").state is State.READY and liar.listeners,
        what=lambda: fleet.view("node-b"),
    )

    liar.send(pb.Report(instance_id=liar.instance_id, generation=generation))

    await until(
        lambda: fleet.view("node-b").state is State.UNREACHABLE,
        what=lambda: fleet.view("node-b"),
    )
    assert f"reports generation {generation}" in fleet.view("node-b").message
    fleet.want("node-a", state_of("a", "b"))
    assert await fleet.settle(["node-a"], timeout_s=50)
    assert fleet.view("node-a").state is State.READY
    assert agent.applied[-1].generation < time.time_ns() + 10**9
    await liar.stop()


async def test_a_link_survives_an_answer_that_breaks_its_reader(
    fleet: Fleet, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect(fleet, agent, state_of("a"))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(session, "targets_by_probe", fail)
        fleet.want("node-a", state_of("a", "b"))
        await until(
            lambda: "ZeroDivisionError" in fleet.view("node-a").message,
            what=lambda: fleet.view("node-a"),
        )

    await until(
        lambda: fleet.view("node-a").state is State.READY and agent.listeners == 1,
        what=lambda: fleet.view("node-a"),
    )


async def test_an_agent_of_another_protocol_is_left_alone(fleet: Fleet, agent: FakeAgent) -> None:
    agent.protocol_version = 2
    fleet.want("node-a", state_of("a"))
    fleet.set_agent("node-a", AgentEndpoint(agent.address))

    await until(
        lambda: fleet.view("node-a").state is State.VERSION_SKEW, what=lambda: fleet.view("node-a")
    )
    assert "speaks protocol 2" in fleet.view("node-a").message
    assert not agent.applied


async def test_a_refusal_is_reported_and_the_next_state_is_tried_at_once(
    fleet: Fleet, agent: FakeAgent
) -> None:
    agent.refuse = (grpc.StatusCode.INVALID_ARGUMENT, "two targets of one id")
    fleet.want("node-a", state_of("a"))
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await until(
        lambda: fleet.view("node-a").state is State.REJECTED, what=lambda: fleet.view("node-a")
    )
    assert "two targets of one id" in fleet.view("node-a").message
    agent.refuse = None
    fleet.want("node-a", state_of("b"))

    await until(lambda: agent.applied, what=lambda: fleet.view("node-a"))
    assert agent.target_ids == [target_id("b")]


def crowded(probes: int) -> DesiredNodeState:
    """One pod with so many probes of a namespace, and a pod with one probe of another."""
    states = DesiredStates()
    for number in range(probes):
        states.set_probe(probe_spec(f"flood-{number:04}", namespace="flood"), [pod("f")])
    states.set_probe(probe_spec("victim", namespace="bank"), [pod("v")])
    return states.of_node("node-a")


@pytest.mark.parametrize("probes", [257, MAX_PROBES + 3])
async def test_any_number_of_probes_of_a_namespace_leaves_the_others_as_they_are(
    fleet: Fleet, agent: FakeAgent, probes: int
) -> None:
    state = crowded(probes)
    await connect(fleet, agent, state)

    view = fleet.view("node-a")
    on_node = {
        probe.key.uid: node_facts("node-a", view, probe.key.uid, probe.targets, probe.modules)
        for probe in state
    }
    assert on_node["uid-victim"] == NodeFacts("node-a", State.READY, attached=1)
    failed = [uid for uid, facts in on_node.items() if facts.state is State.FAILED]
    surplus = max(probes + 1 - MAX_PROBES, 0)
    assert failed == [f"uid-flood-{number:04}" for number in range(probes)][probes - surplus :]
    assert all("the share of namespace flood is" in on_node[uid].message for uid in failed)
    assert len(agent.applied[-1].probes) == probes + 1 - surplus
    assert "uid-victim" in [probe.id for probe in agent.applied[-1].probes]


async def test_targets_that_were_left_out_are_sent_once_there_is_room(
    fleet: Fleet, agent: FakeAgent
) -> None:
    await connect(fleet, agent, crowded(MAX_PROBES))
    sent = {probe.id for probe in agent.applied[-1].probes}
    last = f"uid-flood-{MAX_PROBES - 1:04}"
    assert last not in sent
    fleet.want("node-a", tuple(p for p in crowded(MAX_PROBES) if p.key.name != "flood-0000"))
    assert await fleet.settle(["node-a"], timeout_s=10)

    assert {probe.id for probe in agent.applied[-1].probes} == sent - {"uid-flood-0000"} | {last}
    assert fleet.view("node-a").others == {}


async def test_a_probe_that_cannot_be_encoded_keeps_no_other_from_its_agent(
    fleet: Fleet, agent: FakeAgent
) -> None:
    (bad,) = state_of("a")
    (good,) = state_of("b", name="good")
    await connect(fleet, agent, (replace(bad, ports=(1 << 40,)), good))

    assert [probe.id for probe in agent.applied[-1].probes] == ["uid-good"]
    view = fleet.view("node-a")
    assert view.statuses_of("uid-good", good.targets) == [ATTACHED]
    (refused,) = view.statuses_of(UID, bad.targets)
    assert refused.state is TargetState.FAILED
    assert "cannot send this probe" in refused.message


async def test_a_foreign_certificate_is_refused_with_a_message(
    agent: FakeAgent, ears: Ears, foreign_tls: Path, operator_tls: ClientTlsFiles
) -> None:
    foreign = ClientTlsFiles(
        operator_tls.ca,
        foreign_tls / f"{OPERATOR_NAME}.crt",
        foreign_tls / f"{OPERATOR_NAME}.key",
    )
    fleet = fleet_of(foreign.credentials, ears)
    fleet.open()
    fleet.set_agent("node-a", AgentEndpoint(agent.address))

    await until(
        lambda: fleet.view("node-a").state is State.UNREACHABLE, what=lambda: fleet.view("node-a")
    )
    assert not agent.applied
    await fleet.close()


async def test_a_missing_certificate_is_reported_and_read_when_it_is_there(
    agent: FakeAgent, ears: Ears, operator_tls: ClientTlsFiles, tmp_path: Path
) -> None:
    late = ClientTlsFiles(operator_tls.ca, tmp_path / "tls.crt", operator_tls.key)
    fleet = fleet_of(late.credentials, ears)
    fleet.open()
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await until(
        lambda: fleet.view("node-a").state is State.UNREACHABLE, what=lambda: fleet.view("node-a")
    )
    assert str(tmp_path / "tls.crt") in fleet.view("node-a").message
    late.certificate.write_bytes(operator_tls.certificate.read_bytes())

    await until(lambda: agent.applied, what=lambda: fleet.view("node-a"))
    await fleet.close()


@pytest.fixture
async def renewable(tmp_path: Path, ears: Ears) -> AsyncIterator[tuple[Fleet, Authority]]:
    """An open fleet that looks for renewed certificates all the time, and who signs them."""
    authority = Authority.make(tmp_path)
    credentials = authority.issue(OPERATOR_NAME).credentials
    renewal = Renewal(credentials, poll_s=0.05, patience_s=0, spread_s=0.05)
    fleet = fleet_of(credentials, ears, renewal=renewal)
    fleet.open()
    yield fleet, authority
    await fleet.close()


async def test_a_renewed_certificate_replaces_the_one_of_an_open_connection(
    renewable: tuple[Fleet, Authority], ears: Ears
) -> None:
    fleet, authority = renewable
    agent = FakeAgent(authority.issue(AGENT_NAME))
    await agent.start()
    await connect(fleet, agent, state_of("a"))

    renewed = authority.issue(OPERATOR_NAME).certificate.read_bytes()

    await until(lambda: agent.clients[-1] == renewed, what=lambda: len(agent.clients))
    await until(
        lambda: fleet.view("node-a").state is State.READY and agent.listeners,
        what=lambda: fleet.view("node-a"),
    )
    agent.report(UID, {target_id("a"): measurement(1000)})
    await until(lambda: ears.reports, what=lambda: fleet.view("node-a"))
    await agent.stop()


async def test_without_anything_to_measure_the_agent_gets_an_empty_state_and_is_left(
    fleet: Fleet, agent: FakeAgent
) -> None:
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await until(lambda: agent.applied, what=lambda: fleet.view("node-a"))
    assert list(agent.applied[-1].probes) == []
    await until(lambda: not agent.listeners, what=lambda: agent.listeners)

    await connect(fleet, agent, state_of("a"))
    fleet.want("node-a", NO_STATE)
    await until(lambda: not agent.listeners, what=lambda: agent.listeners)
    assert list(agent.applied[-1].probes) == []


async def test_nothing_is_applied_before_the_fleet_is_open(
    operator_tls: ClientTlsFiles, agent: FakeAgent, ears: Ears
) -> None:
    fleet = fleet_of(operator_tls.credentials, ears)
    fleet.set_agent("node-a", AgentEndpoint(agent.address))
    await asyncio.sleep(0.1)
    assert not agent.applied
    fleet.want("node-a", state_of("a"))
    fleet.open()

    await until(lambda: agent.applied, what=lambda: fleet.view("node-a"))
    assert agent.target_ids == [target_id("a")]
    await fleet.close()


async def test_an_agent_that_is_away_is_not_waited_for(fleet: Fleet) -> None:
    fleet.want("node-a", state_of("a"))
    fleet.set_agent("node-a", AgentEndpoint("127.0.0.1:1"))

    assert await fleet.settle(["node-a", "node-b"], timeout_s=5)


async def test_a_node_without_an_agent_says_why(fleet: Fleet) -> None:
    assert fleet.view("node-a").state is State.NO_AGENT
    assert "no agent runs on this node" in fleet.view("node-a").message
    fleet.set_agent("node-a", None, why_not="agent pod x is Pending")
    assert fleet.view("node-a").message == "agent pod x is Pending"


async def test_changes_of_targets_are_heard(fleet: Fleet, agent: FakeAgent, ears: Ears) -> None:
    agent.coverage = [
        pb.StageCoverage(name="rx.host", state=pb.StageCoverage.UNAVAILABLE, reason="no hook")
    ]
    await connect(fleet, agent, state_of("a"))
    assert fleet.view("node-a").coverage["rx.host"].reason == "no hook"

    def spoil(target: pb.TargetReport) -> None:
        target.status.state = pb.TargetStatus.GONE

    agent.report(UID, {target_id("a"): measurement(1)}, spoil=spoil)
    gone = {UID: {target_id("a"): TargetStatus(TargetState.GONE, "")}}
    await until(
        lambda: fleet.view("node-a").others == gone, what=lambda: fleet.view("node-a").others
    )


def test_a_generation_up_to_an_hour_ahead_of_the_clock_is_overtaken() -> None:
    hour = 3600 * 10**9
    generations = Generations(lambda: 1000)

    generations.observe(1000 + hour)
    assert generations.next() == 1001 + hour
    generations.observe(1001 + hour)  # our own
    with pytest.raises(ImplausibleGenerationError):
        generations.observe(1002 + hour)
    assert generations.next() == 1002 + hour


def test_generations_grow_though_the_clock_goes_back() -> None:
    clock = iter([50, 10, 10, 100])
    generations = Generations(lambda: next(clock))

    assert [generations.next() for _ in range(4)] == [50, 51, 52, 100]
