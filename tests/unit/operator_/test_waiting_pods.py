"""Pods that are bound to a node and run no container yet: agents know them already."""

from __future__ import annotations

from typing import Any

import pytest

from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.asked_pods import AskedPods
from latencyprobe_operator.agents.messages import Outgoing, outgoing_state
from latencyprobe_operator.agents.reported_summaries import reported_summary
from latencyprobe_operator.desired_state import NO_STATE, DesiredStates
from latencyprobe_operator.model import Pod, read_pod
from tests.unit.operator_.probe_world import World, report, running, take
from tests.unit.operator_.waiting import until
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, pod_body, probe_body, probe_spec, target_id

NODE = "node-a"
UID = probe_spec().key.uid


def waiting_pod(name: str, phase: str = "Pending", **parts: Any) -> Pod:
    """A pod that is bound to its node, as the API server shows it before its first container."""
    body = pod_body(name, **parts)
    body["status"] = {"phase": phase}
    return read_pod(body)


def states_with(*pods: Pod, **spec: Any) -> DesiredStates:
    states = DesiredStates()
    states.set_probe(probe_spec(**spec), pods)
    return states


def sent(states: DesiredStates) -> Outgoing:
    return outgoing_state(states.of_node(NODE), generation=1, lease_s=300)


def test_a_pod_is_named_as_soon_as_it_is_bound_to_a_node() -> None:
    states = states_with(waiting_pod("a", node=""))
    assert states.of_node(NODE) == NO_STATE
    assert states.set_pod(UID, waiting_pod("a")) == {NODE}
    (probe,) = sent(states).message.probes
    assert [(each.uid, each.name, list(each.containers)) for each in probe.pods] == [
        ("uid-a", "a", ["server"])
    ]
    assert not probe.targets


def test_a_pod_with_a_running_container_is_measured_as_a_whole() -> None:
    (probe,) = sent(states_with(pod("a"))).message.probes
    assert not probe.pods
    assert [each.container.whole_pod for each in probe.targets] == [True]


def test_a_pod_whose_only_container_starts_again_stays_named() -> None:
    states = states_with(pod("a"))
    assert states.set_pod(UID, waiting_pod("a", phase="Running")) == {NODE}
    assert states.nodes_of(UID) == 1
    assert states.left_by(UID) == frozenset()
    assert states.set_pod(UID, pod("a", run=2)) == {NODE}


def test_a_probe_of_some_containers_waits_for_their_names() -> None:
    states = states_with(waiting_pod("a"), pod("b"), containers=["server"])
    (probe,) = sent(states).message.probes
    assert not probe.pods
    assert [each.container.whole_pod for each in probe.targets] == [False]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_named_no_more(phase: str) -> None:
    states = states_with(waiting_pod("a"))
    assert states.set_pod(UID, waiting_pod("a", phase=phase)) == {NODE}
    (probe,) = sent(states).message.probes
    assert not probe.pods
    assert states.left_by(UID) == {NODE}


def test_a_static_pod_is_named_by_the_uid_of_its_cgroups() -> None:
    body = pod_body("a", namespace="kube-system")
    body["status"] = {"phase": "Pending"}
    body["metadata"]["annotations"] = {
        "kubernetes.io/config.mirror": "x",
        "kubernetes.io/config.hash": "8b1c3f9d5e7a4602b9f0c1d2e3f4a5b6",
    }
    (probe,) = sent(states_with(read_pod(body))).message.probes
    assert [each.uid for each in probe.pods] == ["8b1c3f9d5e7a4602b9f0c1d2e3f4a5b6"]


def test_sidecars_are_among_the_names_and_other_init_containers_are_not() -> None:
    body = pod_body("a", containers=("server", "agent"))
    body["spec"]["initContainers"] = [
        {"name": "migrate"},
        {"name": "proxy", "restartPolicy": "Always"},
    ]
    body["status"] = {"phase": "Pending"}
    (probe,) = sent(states_with(read_pod(body))).message.probes
    assert list(probe.pods[0].containers) == ["agent", "proxy", "server"]


def test_waiting_pods_count_as_targets_of_the_agent() -> None:
    states = states_with(*(waiting_pod(f"p{number}") for number in range(MAX_TARGETS + 3)))
    outgoing = sent(states)
    assert len(outgoing.message.probes[0].pods) == MAX_TARGETS
    refused = outgoing.left_out[UID]
    assert len(refused) == 3
    assert {status.state for status in refused.values()} == {TargetState.FAILED}


def test_very_many_names_of_containers_are_left_out_of_the_message() -> None:
    names = tuple(f"{number:063}" for number in range(40))
    (probe,) = sent(states_with(waiting_pod("a", containers=names))).message.probes
    assert [(each.uid, len(each.containers)) for each in probe.pods] == [("uid-a", 0)]


def test_a_pod_that_cannot_be_encoded_is_left_out_alone() -> None:
    outgoing = sent(states_with(waiting_pod("\ud800"), waiting_pod("b")))
    assert [each.uid for each in outgoing.message.probes[0].pods] == ["uid-b"]
    assert "cannot send this pod" in outgoing.left_out[UID]["uid-\ud800"].message


def test_an_agent_may_report_on_a_waiting_pod_and_after_its_end() -> None:
    states = states_with(waiting_pod("a"))
    asked = AskedPods()
    asked.ask(states.of_node(NODE))
    message = pb.ProbeReport(id=UID, pods=[pb.PodReport(pod_uid="uid-a", name="a", score=7)])
    message.pods[0].verdict.bottleneck = "None"
    for _ in range(2):
        reported = reported_summary(message, frozenset(), asked)
        assert [(each.pod_uid, each.name) for each in reported.pods] == [("uid-a", "a")]
        assert reported.unasked == 0
        states.remove_pod(UID, "uid-a")
        asked.ask(states.of_node(NODE))


async def test_a_waiting_pod_changes_no_condition_and_is_no_target() -> None:
    world = World()
    async with running(world, probe_body(interval="1s")):
        world.show(waiting_pod("a"))
        await until(
            lambda: world.condition() == ("True", "NoRunningContainers"), what=lambda: world.status
        )
        assert world.status["targets"]["pods"] == 1
        assert world.status["targets"]["containers"] == 0
        world.show(waiting_pod("a"), pod("b"))
        await until(lambda: world.condition() == ("True", "Measuring"), what=lambda: world.status)
        assert world.status["targets"]["containers"] == 1


async def test_the_row_of_a_pod_comes_before_the_kubelet_reports_its_container() -> None:
    world = World()
    async with running(world, probe_body(interval="1s")) as probe:
        world.show(waiting_pod("a"))
        await until(lambda: world.status, what=lambda: world.status)
        take(probe, NODE, report({target_id("a"): measurement(1000)}))
        await until(lambda: world.status.get("pods"), what=lambda: world.status)
        (row,) = world.status["pods"]
        assert (row["name"], row["node"], row.get("ended")) == ("a", NODE, None)
        world.show(waiting_pod("a", phase="Succeeded"))
        await until(lambda: world.status["pods"][0].get("ended"), what=lambda: world.status)
