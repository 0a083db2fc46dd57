"""What is asked for is checked as a whole, and refused by the field's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.stages import Module
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import (
    ContainerTarget,
    Desired,
    InvalidStateError,
    PidTarget,
    parse_desired,
)
from latencyprobe_agent.slots import SocketFilter

UID = "0b7e3f0c-1d2e-4f5a-8b9c-0d1e2f3a4b5c"
CID = "ab" * 32


def _state() -> pb.DesiredState:
    return pb.DesiredState(
        generation=7,
        lease=Duration(seconds=30),
        probes=[
            pb.Probe(
                id="p",
                name="shop/checkout",
                modules=["rx", "tcp", "rx"],
                filter=pb.SocketFilter(ports=[443], protocols=["TCP"]),
                interval=Duration(seconds=1, nanos=500_000_000),
                max_cpu_percent=1,
                targets=[
                    pb.Target(
                        id="a",
                        container=pb.Container(pod_uid=UID, container_id=f"containerd://{CID}"),
                    ),
                    pb.Target(id="b", pid=4242),
                ],
            )
        ],
    )


def test_a_state_becomes_values() -> None:
    desired = parse_desired(_state())
    (probe,) = desired.probes
    assert (desired.generation, desired.lease_s) == (7, 30)
    assert probe.modules == {Module.RX, Module.TCP}
    assert probe.interval_s == 1.5
    assert probe.socket_filter == SocketFilter(frozenset({443}), frozenset({"TCP"}))
    assert [t.selector for t in probe.targets] == [ContainerTarget(UID, CID), PidTarget(4242)]


def test_both_protocols_are_the_same_filter_as_none() -> None:
    state = _state()
    state.probes[0].filter.protocols[:] = ["UDP", "TCP"]
    assert parse_desired(state).probes[0].socket_filter.protocols == frozenset()


def test_an_empty_state_wants_nothing() -> None:
    assert parse_desired(pb.DesiredState()) == Desired()


def _container(pod_uid: str = UID, container_id: str = f"containerd://{CID}") -> pb.Target:
    return pb.Target(id="a", container=pb.Container(pod_uid=pod_uid, container_id=container_id))


def _set_target(target: pb.Target) -> Callable[[pb.DesiredState], object]:
    return lambda state: state.probes[0].targets[0].CopyFrom(target)


BROKEN: list[tuple[Callable[[pb.DesiredState], object], str]] = [
    (lambda s: s.probes[0].ClearField("id"), "probes[0].id: is empty"),
    (lambda s: s.probes.append(s.probes[0]), "probes[1].id: 'p' is the id of probes[0] too"),
    (
        lambda s: s.probes[0].targets.append(s.probes[0].targets[1]),
        "probes[0].targets[2].id: 'b' is the id of probes[0].targets[1] too",
    ),
    (
        lambda s: s.probes[0].modules.append("rxx"),
        "probes[0].modules[3]: unknown module 'rxx': known are rx, tx, tcp, irq, sched",
    ),
    (lambda s: s.probes[0].ClearField("modules"), "probes[0].modules: none given"),
    (
        lambda s: s.probes[0].filter.ports.append(0),
        "probes[0].filter.ports[1]: 0: must be from 1 to 65535",
    ),
    (
        lambda s: s.probes[0].filter.ports.append(65536),
        "probes[0].filter.ports[1]: 65536: must be from 1 to 65535",
    ),
    (lambda s: s.probes[0].filter.ports.extend(range(1, 65)), "probes[0].filter.ports: 65"),
    (
        lambda s: s.probes[0].filter.protocols.append("tcp"),
        "probes[0].filter.protocols[1]: 'tcp': must be TCP or UDP",
    ),
    (lambda s: s.probes[0].ClearField("interval"), "probes[0].interval: is not set"),
    (
        lambda s: s.probes[0].interval.CopyFrom(Duration(nanos=1)),
        "probes[0].interval: 1e-09 s: must be from 0.1 s to 600 s",
    ),
    (
        lambda s: s.probes[0].interval.CopyFrom(Duration(seconds=601)),
        "probes[0].interval: 601 s",
    ),
    (lambda s: s.lease.CopyFrom(Duration(seconds=-1)), "lease: -1 s"),
    (
        lambda s: setattr(s.probes[0], "max_cpu_percent", float("nan")),
        "probes[0].max_cpu_percent: nan",
    ),
    (lambda s: setattr(s.probes[0], "name", "a\nb"), "probes[0].name: 'a\\nb' has characters"),
    (lambda s: setattr(s.probes[0], "name", "x" * 257), "probes[0].name: 257 characters"),
    (_set_target(pb.Target(id="a")), "probes[0].targets[0]: no selector"),
    (_set_target(pb.Target(id="a", pid=0)), "probes[0].targets[0].pid: 0: must be from 1"),
    (
        _set_target(pb.Target(id="a", cgroup_path="unified/x")),
        "probes[0].targets[0].cgroup_path: 'unified/x' is not an absolute path",
    ),
    (
        _set_target(pb.Target(id="a", netns_path="/a\0b")),
        "probes[0].targets[0].netns_path: is no path",
    ),
    (_set_target(_container("../..")), "probes[0].targets[0].container.pod_uid: '../..' is no"),
    (_set_target(_container(UID + "\n")), "probes[0].targets[0].container.pod_uid:"),
    (_set_target(_container(UID.upper())), "probes[0].targets[0].container.pod_uid:"),
    (
        _set_target(_container(container_id="containerd://../../etc")),
        "probes[0].targets[0].container.container_id: 'containerd://../../etc' is no",
    ),
    (
        _set_target(_container(container_id=f"rkt://{CID}")),
        "probes[0].targets[0].container.container_id: unknown runtime 'rkt'",
    ),
    (_set_target(_container(container_id="")), "probes[0].targets[0].container.container_id:"),
    (
        lambda s: s.probes.extend(pb.Probe(id=f"x{n}") for n in range(256)),
        "probes: 257 given, at most 256",
    ),
    (
        lambda s: s.probes[0].targets.extend(pb.Target(id=f"x{n}", pid=1) for n in range(1023)),
        "probes: 1025 targets in all, at most 1024",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_state_is_refused_by_field(
    damage: Callable[[pb.DesiredState], object], message: str
) -> None:
    state = _state()
    damage(state)
    with pytest.raises(InvalidStateError) as refused:
        parse_desired(state)
    assert str(refused.value).startswith(message)


@given(st.text(), st.text())
def test_no_container_gets_past_whose_names_are_not_plain_hexadecimal(
    pod_uid: str, container_id: str
) -> None:
    state = pb.DesiredState()
    state.CopyFrom(_state())
    state.probes[0].targets[0].CopyFrom(_container(pod_uid, container_id))
    with pytest.raises(InvalidStateError):
        parse_desired(state)


def test_a_static_pods_hash_is_a_pod_uid() -> None:
    state = _state()
    state.probes[0].targets[0].CopyFrom(_container("0123456789abcdef" * 2))
    target = parse_desired(state).probes[0].targets[0]
    assert target.selector == ContainerTarget("0123456789abcdef" * 2, CID)
