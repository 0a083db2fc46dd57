"""Summaries over the real protocol: taken in, acknowledged, and refused by their parts."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from latencyprobe.domain.fairness import MAX_SUMMARISED_PODS
from latencyprobe.domain.summary import PodChoice
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.limits import LARGEST_NUMBER
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc
from latencyprobe_operator.agents.asked_pods import MOST_ENDED, AskedPods
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.agents.messages import outgoing_state
from latencyprobe_operator.agents.reported_summaries import reported_summary
from latencyprobe_operator.api.status_fields import NodeState
from latencyprobe_operator.desired_state import DesiredNodeState, DesiredStates
from latencyprobe_operator.dns_names import is_subdomain
from latencyprobe_operator.model import Pod
from latencyprobe_operator.observed_state import TargetStatus
from tests.unit.operator_.listening import NODE, SOUND, UID, Listening
from tests.unit.operator_.waiting import until
from tools.fakes.agent import Context, FakeAgent
from tools.fakes.samples import pod, probe_spec, target_id


def state_of(*pods: Pod, choice: PodChoice | None = None) -> DesiredNodeState:
    """The desired state of a node with these pods."""
    states = DesiredStates()
    states.set_probe(probe_spec(), pods, lambda _: choice or PodChoice(20))
    return states.of_node(NODE)


def summary() -> pb.ProbeReport:
    """A sound summary of pod a."""
    agent_report = pb.ProbeReport(id=UID)
    agent_report.summary.score_version = 1
    agent_report.summary.stages.add(name="rx.total", sampling_ratio=1)
    agent_report.summary.scores.add(pod_uid="uid-a", score=7)
    agent_report.summary.verdicts["None"] = 1
    row = agent_report.pods.add(pod_uid="uid-a", name="a", score=7)
    row.stages.add(name="rx.total", sampling_ratio=1)
    row.verdict.bottleneck = "None"
    return agent_report


def test_an_agent_counts_no_more_pods_than_it_was_asked_for() -> None:
    now_s = [0.0]
    message, asked = summary(), AskedPods(lambda: now_s[0])
    message.summary.verdicts.update({"None": 2, "Peer": 900})
    asked.ask(state_of(pod("a"), pod("b")))
    asked.ask(state_of(pod("b"), pod("c")))
    # An earlier operator may have asked for more, until a window has passed.
    for at_s, pods in ((1.0, 902), (10_000.0, 3)):
        now_s[0] = at_s
        report = reported_summary(message, set(), asked)
        assert report.summary
        assert report.summary.pods == pods


async def test_a_summary_is_taken_in_and_acknowledged(listening: Listening) -> None:
    for _ in range(6):
        listening.agent.report(UID, {target_id("a"): SOUND})
    report = await listening.heard(6)

    assert report.summary
    assert report.summary.merged.stage("rx.total").histogram.count == 6
    assert [each.pod_uid for each in report.summary.scores] == ["uid-a"]
    assert report.pods == ()
    assert report.span.end - report.span.begin == 10
    assert report.source.instance_id == listening.agent.instance_id
    assert listening.corrupt == 0
    await until(
        lambda: listening.agent.heard[-1].acknowledged == 6, what=lambda: listening.agent.heard
    )
    assert listening.agent.heard[0] == pb.WatchReportsRequest()


async def test_pods_that_are_wanted_follow_in_a_report_of_their_own(listening: Listening) -> None:
    listening.fleet.want_in_full(NODE, UID, PodChoice(0))
    listening.agent.report(UID, {target_id("a"): SOUND})
    await listening.heard()
    await until(lambda: listening.agent.heard[-1].wanted, what=lambda: listening.agent.heard)
    listening.agent.report(UID, {target_id("a"): SOUND})
    assert (await listening.heard(2)).pods == ()
    listening.fleet.want_in_full(NODE, UID, PodChoice(5), at_once=True)

    report = await listening.heard(3)
    assert report.summary is None
    assert [each.pod_uid for each in report.pods] == ["uid-a"]
    assert report.span == listening.reports[1].span
    listening.fleet.want_in_full("unknown", UID, PodChoice(5))


async def test_the_state_of_a_target_comes_with_a_summary(listening: Listening) -> None:
    message = summary()
    for target in (target_id("a"), target_id("of another")):
        message.summary.statuses.add(id=target, state=pb.TargetStatus.GONE)
    listening.send(pb.Report(probes=[message]))

    report = await listening.heard()
    assert report.unasked == 1
    assert listening.fleet.view(NODE).others == {
        UID: {target_id("a"): TargetStatus(TargetState.GONE, "")}
    }


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: setattr(m.summary.stages[0], "sampling_ratio", math.nan),
        lambda m: setattr(m.summary.stages[0], "lost", 2**64 - 1),
        lambda m: setattr(m.summary.scores[0], "score", 2**64 - 1),
        lambda m: m.summary.verdicts.update({"None": MAX_SUMMARISED_PODS + 1}),
        lambda m: m.summary.unobserved.FromSeconds(-5),
        lambda m: setattr(m.begin, "seconds", -1),
        lambda m: setattr(m.begin, "nanos", -1),
        lambda m: setattr(m.end, "seconds", 2**63 - 1),
        lambda m: setattr(m.end, "seconds", 2**53),
        lambda m: setattr(m.end, "nanos", 10**9),
        lambda m: setattr(m.pods[0].stages[0], "p99_ns", 2**60),
        lambda m: setattr(m.pods[0].stages[0], "share_percent", math.inf),
        lambda m: setattr(m.pods[0].verdict, "share_percent", math.nan),
        lambda m: setattr(m.pods[0].verdict, "share_percent", 100.6),
        lambda m: setattr(m.pods[0].verdict, "share_percent", 1e15),
        lambda m: m.pods.extend([m.pods[0]] * 300),
    ],
)
async def test_a_corrupt_summary_costs_the_report_on_that_probe(
    listening: Listening, spoil: Callable[[pb.ProbeReport], object]
) -> None:
    corrupt = summary()
    spoil(corrupt)
    listening.send(pb.Report(probes=[corrupt]))

    await listening.goes_on()
    assert listening.corrupt == 1
    assert len(listening.reports) == 1


async def test_pods_that_were_not_asked_for_are_left_out_and_counted(
    listening: Listening,
) -> None:
    message = summary()
    message.summary.scores.add(pod_uid="uid-of-another", score=2**40)
    message.pods.add(pod_uid="uid-of-another", name="other").verdict.bottleneck = "None"
    message.pods[0].name = "renamed\x1b"
    listening.send(pb.Report(probes=[message]))

    report = await listening.heard()
    assert report.summary
    assert [each.pod_uid for each in report.summary.scores] == ["uid-a"]
    assert [(each.pod_uid, each.name) for each in report.pods] == [("uid-a", "a")]
    assert report.unasked == 2
    assert listening.corrupt == 1


class OlderAgent(FakeAgent):
    """An agent from before there were windows: it reads one message, and no acknowledgement."""

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        def add(servicer: Any, server: Any) -> None:
            handlers: dict[str, Any] = {
                "GetNodeInfo": grpc.unary_unary_rpc_method_handler(
                    servicer.GetNodeInfo,
                    pb.GetNodeInfoRequest.FromString,
                    pb.NodeInfo.SerializeToString,
                ),
                "Apply": grpc.unary_unary_rpc_method_handler(
                    servicer.Apply, pb.DesiredState.FromString, pb.ApplyResult.SerializeToString
                ),
                "WatchReports": grpc.unary_stream_rpc_method_handler(
                    servicer.watch_older,
                    pb.WatchReportsRequest.FromString,
                    pb.Report.SerializeToString,
                ),
            }
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("latencyprobe.v1.NodeAgent", handlers),)
            )

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(rpc, "add_NodeAgentServicer_to_server", add)
            await super().start(host=host, port=port)

    async def watch_older(
        self, request: pb.WatchReportsRequest, context: Context
    ) -> AsyncIterator[pb.Report]:
        """Yield reports to a client that sends one message."""

        async def one() -> AsyncIterator[pb.WatchReportsRequest]:
            yield request

        async for report in self.WatchReports(one(), context):
            yield report


async def test_an_older_agent_is_understood_though_it_reads_no_acknowledgement(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles
) -> None:
    agent = OlderAgent(agent_tls)
    await agent.start()
    listening = Listening(operator_tls, agent)
    await listening.connect()
    for number in range(300):
        agent.report_deltas(UID, {target_id("a"): SOUND})
        await listening.heard(number + 1)

    report = listening.reports[-1]
    assert report.summary is None
    assert report.pods == ()
    assert [target.measurement for target in report.targets] == [SOUND]
    assert listening.fleet.view(NODE).version == "0.1.0"
    assert listening.fleet.view(NODE).state is NodeState.READY
    await listening.fleet.close()
    await agent.stop()


async def test_another_choice_alone_applies_nothing(listening: Listening) -> None:
    states = len(listening.agent.applied)
    listening.fleet.want(NODE, state_of(pod("a"), choice=PodChoice(1, 5)))
    assert await listening.fleet.settle([NODE], timeout_s=50)
    assert len(listening.agent.applied) == states

    listening.fleet.want(NODE, state_of(pod("a"), pod("b"), choice=PodChoice(2, 5)))
    assert await listening.fleet.settle([NODE], timeout_s=50)
    (probe,) = listening.agent.applied[-1].probes
    assert (probe.pods_in_full.most, probe.pods_in_full.min_score) == (2, 5)


def test_a_state_has_the_window_and_the_names_of_its_pods() -> None:
    (probe,) = outgoing_state(
        state_of(pod("a", containers=("server",))), generation=1, lease_s=300
    ).message.probes

    assert (probe.window.ToSeconds(), probe.max_pods) == (60, 20)
    assert probe.pods_in_full == pb.PodChoice(most=20)
    container = probe.targets[0].container
    assert (container.pod_name, container.container_name) == ("a", "server")


@pytest.mark.parametrize("per_pod", [False, True])
def test_agents_are_asked_for_metrics_per_pod_as_the_probe_has_it(*, per_pod: bool) -> None:
    states = DesiredStates()
    states.set_probe(probe_spec(metrics={"perPod": per_pod}), [pod("a")])

    (probe,) = outgoing_state(states.of_node(NODE), generation=1, lease_s=300).message.probes

    assert probe.metrics_per_pod is per_pod


def test_agents_are_sent_the_objectives_of_the_probe() -> None:
    limits = {"a": "5ms", "b": "200h", "c": "2562047h"}
    objectives = [
        {"name": name, "stage": "rx.total", "percentile": "p99.9", "max": limit}
        for name, limit in limits.items()
    ]
    states = DesiredStates()
    states.set_probe(probe_spec(objectives=objectives), [pod("a")])

    (probe,) = outgoing_state(states.of_node(NODE), generation=1, lease_s=300).message.probes

    sent = [(each.stage, each.percentile, each.max_ns) for each in probe.objectives]
    assert sent == [
        ("rx.total", 99.9, 5_000_000),
        ("rx.total", 99.9, 200 * 3600 * 10**9),
        ("rx.total", 99.9, LARGEST_NUMBER),
    ]


def test_a_static_pod_is_known_by_the_uid_of_its_cgroups() -> None:
    asked = AskedPods()
    asked.ask(state_of(replace(pod("a"), cgroup_uid="0123456789abcdef0123456789abcdef")))
    message = summary()
    for part in (message.summary.scores[0], message.pods[0]):
        part.pod_uid = "0123456789abcdef0123456789abcdef"
    report = reported_summary(message, set(), asked)

    assert report.summary
    assert [each.pod_uid for each in report.summary.scores] == ["uid-a"]
    assert [each.pod_uid for each in report.pods] == ["uid-a"]


def test_pods_that_this_operator_asked_for_earlier_are_known() -> None:
    asked = AskedPods()
    asked.ask(state_of(pod("a"), pod("b")))
    asked.ask(state_of(pod("b")))
    assert asked.finder(UID)("uid-a") == ("uid-a", "a")
    asked.ask(())
    assert asked.finder(UID)("uid-b") == ("uid-b", "b")
    for number in range(MOST_ENDED + 1):
        asked.ask(state_of(pod(f"next-{number}")))
    assert asked.finder(UID)("uid-a") is None


def test_another_tenants_ended_pods_do_not_displace_a_namespaces_own() -> None:
    asked, states = AskedPods(), DesiredStates()

    def ask() -> None:
        asked.ask(states.of_node(NODE))

    states.set_probe(probe_spec("bank", namespace="bank"), [pod("mine"), pod("stays")])
    ask()
    states.set_probe(probe_spec("bank", namespace="bank"), [pod("stays")])
    ask()
    # Probes that come and go, and pods that do.
    for number in range(20):
        flood = probe_spec(f"flood-{number}", namespace="flood")
        states.set_probe(flood, [pod(f"pod-{each}") for each in range(100)])
        ask()
        states.remove_probe(flood.key.uid)
        ask()
    for number in range(20):
        pods = [pod(f"pod-{number}-{each}") for each in range(100)]
        states.set_probe(probe_spec("flood", namespace="flood"), pods)
        ask()

    assert asked.finder(probe_spec("bank", namespace="bank").key.uid)("uid-mine")
    assert len(asked._ended) == MOST_ENDED


class Leader:
    """A new leader: the API server has pod a, and an ended pod; its status lists some more."""

    def __init__(self, *listed: str, node: str = NODE, **spec: Any) -> None:
        self.now = 1000.0
        self.states = DesiredStates()
        self.states.set_probe(
            probe_spec(**spec), [pod("a")], earlier={node: listed}, exists=self.has_in_the_api
        )
        self.asked = AskedPods(lambda: self.now)

    @staticmethod
    def has_in_the_api(node: str, pod_uid: str, name: str) -> bool:
        return (node, pod_uid, name) == (NODE, "uid-ended", "ended")

    def ask(self) -> None:
        """Send the agent its state."""
        self.asked.ask(self.states.of_node(NODE))

    def takes(self, pod_uid: str, name: str) -> bool:
        """Whether the agent may report that this pod has ended."""
        message = summary()
        message.pods.add(pod_uid=pod_uid, name=name, ended=True).verdict.bottleneck = "None"
        message.summary.scores.add(pod_uid=pod_uid, score=2**52)
        report = reported_summary(message, set(), self.asked)
        taken = (pod_uid, name) in [(each.pod_uid, each.name) for each in report.pods]
        assert report.summary
        assert taken is (pod_uid in [each.pod_uid for each in report.summary.scores])
        is_open = self.asked.may_have_earlier(UID)
        assert report.unasked == (0 if taken or is_open else 2)
        return taken


@pytest.mark.parametrize("listed", [(), ("job-1",)])
def test_an_agent_invents_no_pods(listed: tuple[str, ...]) -> None:
    leader = Leader(*listed)
    leader.ask()
    invented = [f"victim-of-another-node-{number}" for number in range(10)]

    assert [name for name in invented if leader.takes(f"uid-{name}", name)] == []


def test_a_pod_that_the_found_status_lists_is_known_for_a_window() -> None:
    leader = Leader("job-1", "job-2")
    assert leader.asked.admit(UID, "uid-1", "job-1") is None, "no state was sent yet"
    leader.ask()
    assert leader.takes("uid-1", "job-1")
    assert leader.takes("uid-1", "job-1"), "in each report"
    assert not leader.takes("uid-another", "job-1"), "one pod by one name"
    leader.now += 65
    leader.ask()
    assert leader.takes("uid-2", "job-2"), "it has ended within the last interval"
    leader.now += 20
    leader.ask()
    assert not leader.takes("uid-1", "job-1")
    assert not leader.takes("uid-2", "job-2")
    leader.asked = AskedPods(lambda: leader.now)
    leader.ask()
    assert not leader.takes("uid-1", "job-1"), "nor over another connection"


def test_a_pod_that_the_api_server_has_on_that_node_is_known_for_a_window() -> None:
    leader = Leader()
    leader.ask()
    assert not leader.takes("uid-another", "ended")
    assert leader.takes("uid-ended", "ended")
    leader.now += 85
    assert not leader.takes("uid-ended", "ended")


def test_pods_that_have_ended_before_a_new_leader_came_are_no_fault_for_a_window() -> None:
    leader = Leader("a")
    leader.ask()
    message = summary()
    # A pod that the status had no room for, the one before pod a in a StatefulSet, and a score.
    for uid, name in (("uid-unlisted", "unlisted"), ("uid-before", "a")):
        message.pods.add(pod_uid=uid, name=name, ended=True).verdict.bottleneck = "None"
        message.summary.scores.add(pod_uid=uid, score=2**52)
    message.summary.scores.add(pod_uid="uid-third", score=3)
    for unasked in (0, 5):
        report = reported_summary(message, set(), leader.asked)
        assert report.unasked == unasked
        assert [each.pod_uid for each in report.pods] == ["uid-a"]
        assert report.summary
        assert [each.pod_uid for each in report.summary.scores] == ["uid-a"]
        leader.now += 85


@pytest.mark.parametrize(
    ("interval", "window", "last_s", "over_s"), [("1s", "1m", 64, 67), ("10s", "1h", 3890, 3911)]
)
def test_pods_that_leave_an_agents_window_with_a_slot_are_no_fault_until_then(
    interval: str, window: str, last_s: int, over_s: int
) -> None:
    """A slot of several intervals stays until its end is older than the window."""
    leader = Leader("job-1", interval=interval, window=window)
    leader.ask()
    message = summary()
    message.pods.add(pod_uid="uid-un", name="unlisted", ended=True).verdict.bottleneck = "None"
    leader.now += last_s
    assert reported_summary(message, set(), leader.asked).unasked == 0
    assert leader.takes("uid-1", "job-1")
    leader.now += over_s - last_s
    assert reported_summary(message, set(), leader.asked).unasked == 1
    assert not leader.takes("uid-1", "job-1")


def test_a_living_pod_that_was_not_asked_for_is_a_fault_at_any_time() -> None:
    leader = Leader()
    leader.ask()
    message = summary()
    message.pods.add(pod_uid="uid-another", name="another").verdict.bottleneck = "None"
    message.summary.scores.add(pod_uid="uid-another", score=2**52)

    assert reported_summary(message, set(), leader.asked).unasked == 2


def test_names_of_other_nodes_and_of_pods_that_are_measured_are_refused() -> None:
    leader = Leader("a", "job-1")
    leader.ask()
    assert not leader.takes("uid-another", "a")
    leader = Leader("job-1", node="node-b")
    leader.ask()
    assert not leader.takes("uid-1", "job-1")


def test_only_uids_and_names_of_pods_are_known() -> None:
    leader = Leader("job", "J")
    leader.ask()
    for uid, name in (("", "job"), ("x" * 129, "job"), ("\x1b", "job"), ("uid", "J")):
        assert not leader.takes(uid, name)
    assert leader.takes("uid", "job")


def test_a_new_spec_within_the_window_changes_nothing() -> None:
    leader = Leader("job-1", "job-2")
    leader.ask()
    assert leader.takes("uid-1", "job-1")
    leader.states.set_probe(probe_spec(interval="5s"), [pod("a")])
    leader.ask()
    assert leader.takes("uid-1", "job-1")
    assert leader.takes("uid-2", "job-2")
    leader.now += 85
    assert not leader.takes("uid-1", "job-1")


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("a", True),
        ("checkout-7d4b9c6f5-x2x4z", True),
        ("a.b-c.9", True),
        ("a" * 253, True),
        ("a" * 254, False),
        ("", False),
        ("-a", False),
        ("a-", False),
        ("a..b", False),
        ("A", False),
        ("a\n", False),
        ("a b", False),
        ("ä", False),
    ],
)
def test_only_names_of_pods_are_names_of_earlier_pods(name: str, sound: bool) -> None:
    assert is_subdomain(name) is sound
