"""What an agent cannot take, or the protocol cannot carry, is left out alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from latencyprobe.domain.fairness import (
    MAX_PROBES,
    MAX_TARGETS,
    MAX_WINDOWS_PER_SECOND,
    TargetName,
)
from latencyprobe.domain.targets import TargetState
from latencyprobe.protocol.measurements import MAX_REQUEST_BYTES, measurement_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.messages import Outgoing, outgoing_state, reported_probe
from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.desired_state import DesiredNodeState, DesiredStates, ProbeOnNode
from latencyprobe_operator.model import ContainerTarget, Pod
from tools.fakes.agent import measurement
from tools.fakes.samples import pod, probe_spec, target_id


def node_state(
    namespace: str, probes: int, pods: Sequence[Pod], interval: str = "10s"
) -> DesiredNodeState:
    """The state of a node where these pods have so many probes."""
    states = DesiredStates()
    for number in range(probes):
        spec = probe_spec(f"{namespace}-{number}", namespace=namespace, interval=interval)
        states.set_probe(spec, pods)
    return states.of_node("node-a")


def some_pods(
    count: int, prefix: str = "p", containers: tuple[str, ...] = ("server",)
) -> list[Pod]:
    """Pods of one node."""
    return [pod(f"{prefix}{number}", containers=containers) for number in range(count)]


def send(state: DesiredNodeState, held: frozenset[TargetName] = frozenset()) -> Outgoing:
    """The state as it is sent."""
    return outgoing_state(state, generation=1, lease_s=300, held=held)


def namespaces_of(targets: frozenset[TargetName]) -> dict[str, int]:
    """The number of targets of each namespace."""
    counts: dict[str, int] = {}
    for probe_uid, _ in targets:
        namespace = probe_uid.split("-")[1]
        counts[namespace] = counts.get(namespace, 0) + 1
    return counts


@pytest.mark.parametrize(
    ("probes", "containers"), [(257, 1), (10, 110), (4, 330)], ids=["257x1", "10x110", "4x330"]
)
def test_an_honest_state_is_sent_whole(probes: int, containers: int) -> None:
    outgoing = send(node_state("shop", probes, some_pods(containers)))
    assert outgoing.left_out == {}
    assert len(outgoing.targets) == probes * containers
    assert {probe.namespace for probe in outgoing.message.probes} == {"shop"}


def test_excess_for_an_agent_is_left_out_of_its_namespace_alone() -> None:
    flood = node_state("flood", MAX_PROBES + 20, some_pods(1))
    outgoing = send(flood + node_state("bank", 2, some_pods(3, "b")))
    assert namespaces_of(outgoing.targets) == {"bank": 6, "flood": MAX_PROBES - 2}
    assert len(outgoing.message.probes) == MAX_PROBES
    statuses = [status for each in outgoing.left_out.values() for status in each.values()]
    assert len(statuses) == 22
    assert {status.state for status in statuses} == {TargetState.FAILED}
    assert f"the share of namespace flood is {MAX_PROBES - 2}" in statuses[0].message


def test_windows_beyond_those_that_an_agent_can_compute_are_left_out_of_their_namespace() -> None:
    two_containers = some_pods(110, containers=("server", "proxy"))
    honest = node_state("bank", 1, two_containers, "1s") + node_state("shop", 2, some_pods(110))
    assert send(honest).left_out == {}

    outgoing = send(honest + node_state("flood", 6, some_pods(110), "1s"))
    most = MAX_WINDOWS_PER_SECOND - 110
    assert namespaces_of(outgoing.targets) == {"bank": 220, "shop": 220, "flood": most}
    texts = {status.message for each in outgoing.left_out.values() for status in each.values()}
    (text,) = texts
    assert f"the share of namespace flood is {most}: use a longer interval" in text


def test_a_probe_without_targets_is_sent_as_long_as_there_is_room() -> None:
    left = tuple(replace(each, targets=()) for each in node_state("left", 900, some_pods(1)))
    outgoing = send(left[:2] + node_state("bank", 1, some_pods(1)))
    assert {probe.namespace for probe in outgoing.message.probes} == {"left", "bank"}
    assert len(outgoing.message.probes) == 3
    assert outgoing.sent[left[0].key.uid] == frozenset()

    full = send(left + node_state("flood", MAX_PROBES - 10, some_pods(1)))
    assert len(full.message.probes) == MAX_PROBES
    assert namespaces_of(full.targets) == {"flood": MAX_PROBES - 10}

    wide = tuple(replace(each, ports=tuple(range(60_000, 61_000))) for each in left)
    assert 100 < len(send(wide).message.probes) < 900
    assert send(wide).message.ByteSize() <= MAX_REQUEST_BYTES


def test_a_namespace_that_was_first_yields_what_is_above_its_share() -> None:
    first = node_state("first", 20, some_pods(300))
    before = send(first).targets
    assert len(before) == MAX_TARGETS
    both = send(first + node_state("second", 20, some_pods(300, "s")), before).targets
    assert namespaces_of(both) == {"first": MAX_TARGETS // 2, "second": MAX_TARGETS // 2}
    assert {name for name in both if "first" in name[0]} < before
    assert send(first, both).targets >= {name for name in both if "first" in name[0]}


def test_a_state_too_large_for_a_message_is_trimmed_fairly() -> None:
    long = "x" * 350
    targets = tuple(
        ContainerTarget(f"{number:04}{long[:100]}", "u" * 100, f"c {long}") for number in range(5)
    )
    state = tuple(
        ProbeOnNode(
            key=ProbeKey(f"uid-{number}", "n" * 63, "p" * 253),
            modules=probe_spec().modules,
            ports=tuple(range(60_000, 61_000)),
            protocols=("TCP",),
            interval_s=1.0,
            max_cpu_percent=1.0,
            targets=targets,
        )
        for number in range(MAX_PROBES + 10)
    )
    outgoing = send(state + node_state("bank", 3, some_pods(5, "b")))
    size = outgoing.message.ByteSize()
    assert 0.9 * MAX_REQUEST_BYTES < size <= MAX_REQUEST_BYTES
    assert sum(name[0].startswith("uid-bank") for name in outgoing.targets) == 15
    statuses = [status for each in outgoing.left_out.values() for status in each.values()]
    assert len(statuses) + len(outgoing.targets) == 5 * len(state) + 15
    texts = {status.message for status in statuses if "bytes" in status.message}
    assert len(texts) == 1
    assert next(iter(texts)).startswith("a message to an agent has at most 1048512 bytes; the sha")
    assert send(state, outgoing.targets).targets >= {
        name for name in outgoing.targets if not name[0].startswith("uid-bank")
    }


def test_as_many_usual_targets_as_an_agent_measures_fit_into_a_message() -> None:
    uid, container_id = "0b8f7c34-5a3c-4a57-8a6e-0f6f1d5f6d1c", "containerd://" + "ab" * 32
    targets = tuple(
        ContainerTarget(f"{number:08}{uid[8:]}", uid, f"c {container_id}")
        for number in range(MAX_TARGETS // 16)
    )
    state = tuple(
        replace(BROKEN, key=ProbeKey(f"{number:08}{uid[8:]}", "shop", "checkout"), targets=targets)
        for number in range(16)
    )
    outgoing = send(state)
    assert len(outgoing.targets) == MAX_TARGETS
    assert outgoing.left_out == {}
    assert outgoing.message.ByteSize() <= MAX_REQUEST_BYTES


SOUND = node_state("bank", 1, some_pods(1, "b"))
BROKEN = node_state("shop", 1, some_pods(2))[0]


@pytest.mark.parametrize(
    "broken",
    [
        replace(BROKEN, ports=(1 << 40,)),
        replace(BROKEN, ports=(-1,)),
        replace(BROKEN, ports=tuple(range(1, 60_000))),
        replace(BROKEN, protocols=("\ud800",)),
        replace(BROKEN, interval_s=float("inf")),
        replace(BROKEN, interval_s=float("nan")),
        replace(BROKEN, interval_s=1e300),
        replace(BROKEN, max_cpu_percent="much"),  # type: ignore[arg-type]
    ],
    ids=lambda probe: f"{probe.ports[:1]} {probe.protocols} {probe.interval_s}",
)
def test_a_probe_that_cannot_be_encoded_is_left_out_alone(broken: ProbeOnNode) -> None:
    outgoing = send((broken, *SOUND))
    assert [probe.id for probe in outgoing.message.probes] == ["uid-bank-0"]
    statuses = outgoing.left_out["uid-shop-0"]
    assert set(statuses) == {target_id("p0"), target_id("p1")}
    assert {status.state for status in statuses.values()} == {TargetState.FAILED}
    assert all(
        status.message.startswith("the operator cannot send this probe to an agent: ")
        for status in statuses.values()
    )


@pytest.mark.parametrize("container_id", ["\ud800", "x" * 2000])
def test_a_target_that_cannot_be_encoded_is_left_out_alone(container_id: str) -> None:
    bad = ContainerTarget("bad", "uid-p9", f"server {container_id}")
    broken = replace(BROKEN, targets=(*BROKEN.targets, bad))
    outgoing = send((broken, *SOUND))
    assert set(outgoing.left_out["uid-shop-0"]) == {bad.id}
    assert len(outgoing.targets) == 3


def reported(**parts: Any) -> pb.TargetReport:
    """A target's part of a report, which is attached."""
    status = pb.TargetStatus(id=target_id("a"), state=pb.TargetStatus.ATTACHED)
    return pb.TargetReport(status=status, **parts)


def test_a_report_is_decoded_target_by_target() -> None:
    measured = measurement(1000)
    stages, counters = measurement_to_proto(measured)
    message = pb.ProbeReport(id="uid", targets=[reported(stages=stages, counters=counters)])
    message.targets.add().CopyFrom(message.targets[0])
    message.node.counters["softnetDropped"] = 2

    report = reported_probe(message)

    assert report.probe_uid == "uid"
    assert [(each.id, each.status.state) for each in report.targets] == [
        (target_id("a"), TargetState.ATTACHED)
    ] * 2
    assert [each.measurement for each in report.targets] == [measured] * 2
    assert report.node.counters == {"softnetDropped": 2}


def test_a_corrupt_part_of_a_report_is_left_out_alone() -> None:
    stages, _ = measurement_to_proto(measurement(1000))
    corrupt = reported(stages=stages)
    corrupt.stages[0].histogram.positions.append(9)
    message = pb.ProbeReport(id="uid", targets=[corrupt, reported(stages=stages)])
    message.node.stages.add(detail="eth0")

    report = reported_probe(message)

    first, second = report.targets
    assert first.corruption
    assert "stages[0].histogram" in first.corruption
    assert not first.measurement
    assert second.corruption is None
    assert second.measurement == measurement(1000)
    assert report.node_corruption == "node.stages[0].name: is empty"
    assert not report.node


def test_stages_of_a_newer_agent_are_named() -> None:
    stages, _ = measurement_to_proto(measurement(1000))
    unknown = pb.StageDelta(name="rx.quantum")
    message = pb.ProbeReport(id="uid", targets=[reported(stages=[*stages, unknown])])

    (target,) = reported_probe(message).targets

    assert target.unknown_stages == ("rx.quantum",)
    assert target.measurement == measurement(1000)
