"""What is asked for is checked, and what is invalid is refused alone, by the field's name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.fairness import MAX_PROBES, MAX_TARGETS, MAX_WINDOWS_PER_SECOND
from latencyprobe.domain.stages import Module
from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import (
    ContainerSelector,
    Desired,
    DesiredWindow,
    InvalidStateError,
    PidSelector,
    admit,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.serving.requests import parse_desired

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
    assert [t.selector for t in probe.targets] == [ContainerSelector(UID, CID), PidSelector(4242)]


def test_over_tls_targets_that_are_no_containers_are_refused_one_by_one() -> None:
    state = _state()
    state.probes[0].targets.add(id="c", cgroup_path=b"/sys/fs/cgroup")
    state.probes[0].targets.add(id="n", netns_path=b"/proc/1/ns/net")
    desired = parse_desired(state, only_containers=True)
    assert [t.selector for t in desired.probes[0].targets] == [ContainerSelector(UID, CID)]
    reason = "over TLS an agent measures containers only"
    assert {name: text.partition(";")[0] for name, text in desired.refused["p"].items()} == {
        "b": f"targets[1].pid: {reason}",
        "c": f"targets[2].cgroup_path: {reason}",
        "n": f"targets[3].netns_path: {reason}",
    }


def test_both_protocols_are_the_same_filter_as_none() -> None:
    state = _state()
    state.probes[0].filter.protocols[:] = ["UDP", "TCP"]
    assert parse_desired(state).probes[0].socket_filter.protocols == frozenset()


def test_a_module_of_a_newer_client_is_left_out() -> None:
    state = _state()
    known = parse_desired(state).probes[0].modules
    state.probes[0].modules.append("disk")
    desired = parse_desired(state)
    assert desired.probes[0].modules == known
    assert not desired.refused


def test_an_empty_state_wants_nothing() -> None:
    assert parse_desired(pb.DesiredState()) == Desired()


def _container(pod_uid: str = UID, container_id: str = f"containerd://{CID}") -> pb.Target:
    return pb.Target(id="a", container=pb.Container(pod_uid=pod_uid, container_id=container_id))


def _set_target(target: pb.Target) -> Callable[[pb.DesiredState], object]:
    return lambda state: state.probes[0].targets[0].CopyFrom(target)


BROKEN: list[tuple[Callable[[pb.DesiredState], object], str]] = [
    (lambda s: s.probes[0].ClearField("id"), "probes[0].id: is empty"),
    (lambda s: s.probes.append(s.probes[0]), "probes[1].id: 'p' is also the id of probes[0]"),
    (lambda s: s.lease.CopyFrom(Duration(seconds=-1)), "lease: -1 s"),
]
BROKEN_PROBES: list[tuple[Callable[[pb.DesiredState], object], str]] = [
    (
        lambda s: s.probes[0].targets.append(s.probes[0].targets[1]),
        "targets[2].id: 'b' is also the id of targets[1]",
    ),
    (
        lambda s: s.probes[0].modules.__setitem__(slice(None), ["rxx", "txx"]),
        "modules[0]: unknown module 'rxx'; choose from rx, tx, tcp, irq, sched",
    ),
    (lambda s: s.probes[0].ClearField("modules"), "modules: is empty; choose from rx, tx"),
    (
        lambda s: s.probes[0].filter.ports.append(0),
        "filter.ports[1]: 0: must be from 1 to 65535",
    ),
    (
        lambda s: s.probes[0].filter.ports.append(65536),
        "filter.ports[1]: 65536: must be from 1 to 65535",
    ),
    (lambda s: s.probes[0].filter.ports.extend(range(1, 65)), "filter.ports: 65"),
    (
        lambda s: s.probes[0].filter.protocols.append("tcp"),
        "filter.protocols[1]: 'tcp': must be TCP or UDP",
    ),
    (lambda s: s.probes[0].ClearField("interval"), "interval: is not set"),
    (
        lambda s: s.probes[0].interval.CopyFrom(Duration(nanos=1)),
        "interval: 1e-09 s: must be from 0.1 s to 600 s",
    ),
    (
        lambda s: s.probes[0].interval.CopyFrom(Duration(seconds=601)),
        "interval: 601 s",
    ),
    (
        lambda s: setattr(s.probes[0], "max_cpu_percent", float("nan")),
        "max_cpu_percent: nan",
    ),
    (lambda s: setattr(s.probes[0], "name", "a\nb"), "name: 'a\\nb' has characters"),
    (lambda s: setattr(s.probes[0], "name", "x" * 513), "name: 513 characters"),
]
BROKEN_TARGETS: list[tuple[Callable[[pb.DesiredState], object], str]] = [
    (_set_target(pb.Target(id="a")), "targets[0]: no selector"),
    (_set_target(pb.Target(id="a", pid=0)), "targets[0].pid: 0: must be from 1"),
    (
        _set_target(pb.Target(id="a", cgroup_path=b"unified/x")),
        "targets[0].cgroup_path: 'unified/x' is not an absolute path",
    ),
    (
        _set_target(pb.Target(id="a", netns_path=b"/a\0b")),
        "targets[0].netns_path: is not a path",
    ),
    (_set_target(_container("../..")), "targets[0].container.pod_uid: '../..' is no"),
    (_set_target(_container(UID + "\n")), "targets[0].container.pod_uid:"),
    (_set_target(_container(UID.upper())), "targets[0].container.pod_uid:"),
    (
        _set_target(_container(container_id="containerd://../../etc")),
        "targets[0].container.container_id: 'containerd://../../etc' is no",
    ),
    (
        _set_target(_container(container_id=f"rkt://{CID}")),
        "targets[0].container.container_id: unknown runtime 'rkt'",
    ),
    (_set_target(_container(container_id="")), "targets[0].container.container_id:"),
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


def _with_another(damage: Callable[[pb.DesiredState], object]) -> pb.DesiredState:
    """A damaged probe, and a sound one of another namespace."""
    state = _state()
    damage(state)
    sound = _state().probes[0]
    sound.id, sound.name = "sound", "bank/sound"
    state.probes.append(sound)
    return state


@pytest.mark.parametrize(
    ("damage", "message"), BROKEN_PROBES, ids=[message for _, message in BROKEN_PROBES]
)
def test_a_broken_probe_is_refused_alone_with_all_its_targets(
    damage: Callable[[pb.DesiredState], object], message: str
) -> None:
    desired = parse_desired(_with_another(damage))
    assert [probe.id for probe in desired.probes] == ["sound"]
    assert [*desired.refused] == ["p"]
    assert set(desired.refused["p"]) == {"a", "b"}
    assert all(text.startswith(message) for text in desired.refused["p"].values())


@pytest.mark.parametrize(
    ("damage", "message"), BROKEN_TARGETS, ids=[message for _, message in BROKEN_TARGETS]
)
def test_a_broken_target_is_refused_alone(
    damage: Callable[[pb.DesiredState], object], message: str
) -> None:
    desired = parse_desired(_with_another(damage))
    (probe, sound) = desired.probes
    assert [target.id for target in probe.targets] == ["b"]
    assert [target.id for target in sound.targets] == ["a", "b"]
    ((target_id, text),) = desired.refused["p"].items()
    assert target_id == "a"
    assert text.startswith(message)


def test_a_probe_without_a_valid_target_is_not_measured() -> None:
    state = _state()
    del state.probes[0].targets[1]
    state.probes[0].targets[0].CopyFrom(_container("../.."))
    desired = parse_desired(state)
    assert desired.probes == ()
    assert set(desired.refused["p"]) == {"a"}


@pytest.mark.parametrize(
    ("name", "namespace", "expected"),
    [
        ("shop/checkout", "", "shop"),
        ("shop/checkout", "bank", "bank"),
        ("checkout", "", ""),
        ("n" * 63 + "/" + "p" * 253, "", "n" * 63),
    ],
)
def test_the_namespace_is_the_names_where_the_client_is_older(
    name: str, namespace: str, expected: str
) -> None:
    state = _state()
    state.probes[0].name, state.probes[0].namespace = name, namespace
    (probe,) = parse_desired(state).probes
    assert (probe.name, probe.namespace) == (name, expected)


def _flood(namespace: str, probes: int, targets: int) -> list[pb.Probe]:
    """Probes of one namespace, all on the same processes."""
    return [
        pb.Probe(
            id=f"{namespace}-{n}",
            name=f"{namespace}/{n}",
            modules=["rx"],
            interval=Duration(seconds=1),
            targets=[pb.Target(id=f"t{pid}", pid=pid) for pid in range(1, targets + 1)],
        )
        for n in range(probes)
    ]


def _admitted(desired: Desired) -> Counter[str]:
    """The number of targets that are measured, by namespace."""
    return Counter(probe.namespace for probe in desired.probes for _ in probe.targets)


@pytest.mark.parametrize(
    ("probes", "targets"),
    [(257, 1), (10, 110), (4, 330)],
    ids=["257 probes", "10 on 110 pods", "4 on 330 containers"],
)
def test_as_many_probes_as_an_honest_node_has_are_all_admitted(probes: int, targets: int) -> None:
    desired = admit(parse_desired(pb.DesiredState(probes=_flood("shop", probes, targets))))
    assert (len(desired.probes), desired.refused) == (probes, {})


@pytest.mark.parametrize(("probes", "targets"), [(MAX_PROBES + 1, 1), (100, 100)])
def test_excess_is_refused_to_its_namespace_alone(probes: int, targets: int) -> None:
    victims = _flood("victim", 2, 3)
    state = pb.DesiredState(probes=[*_flood("flood", probes, targets), *victims])
    desired = admit(parse_desired(state))
    admitted = _admitted(desired)
    assert admitted["victim"] == 6
    assert len(desired.probes) <= MAX_PROBES
    assert admitted.total() <= MAX_TARGETS
    assert len(desired.probes) == MAX_PROBES or admitted.total() == MAX_TARGETS
    assert {probe_id.partition("-")[0] for probe_id in desired.refused} == {"flood"}
    text = next(iter(next(iter(desired.refused.values())).values()))
    assert "the share of namespace flood is" in text


def test_a_namespace_that_comes_later_takes_from_one_above_its_share() -> None:
    first = _flood("first", 20, 300)
    before = admit(parse_desired(pb.DesiredState(probes=first)))
    held = {(probe.id, target.id) for probe in before.probes for target in probe.targets}
    assert len(held) == MAX_TARGETS
    state = pb.DesiredState(probes=[*first, *_flood("second", 20, 300)])
    both = admit(parse_desired(state), held)
    assert _admitted(both) == {"first": MAX_TARGETS // 2, "second": MAX_TARGETS // 2}
    kept = {(p.id, t.id) for p in both.probes for t in p.targets if p.namespace == "first"}
    assert kept <= held


@pytest.mark.parametrize(("window_s", "expected"), [(60, MAX_WINDOWS_PER_SECOND), (0, 1100)])
def test_windows_per_second_are_bounded_where_the_agent_keeps_them(
    window_s: int, expected: int
) -> None:
    state = pb.DesiredState(probes=[*_flood("flood", 10, 110), *_flood("victim", 2, 3)])
    for probe in state.probes:
        probe.window.CopyFrom(Duration(seconds=window_s))
    desired = admit(parse_desired(state))
    admitted = _admitted(desired)
    assert admitted == {"flood": expected - (6 if window_s else 0), "victim": 6}
    texts = {text for each in desired.refused.values() for text in each.values()}
    assert all("use a longer interval" in text for text in texts)
    assert bool(texts) is bool(window_s)


def test_a_window_of_many_containers_counts_once() -> None:
    state = _with_window(60)
    (probe,) = state.probes
    del probe.targets[:]
    for number in range(MAX_WINDOWS_PER_SECOND * 2):
        probe.targets.append(_container(container_id=f"containerd://{number:064x}"))
        probe.targets[-1].id = str(number)
    assert not admit(parse_desired(state)).refused


@given(st.text(), st.text())
def test_no_container_gets_past_whose_names_are_not_plain_hexadecimal(
    pod_uid: str, container_id: str
) -> None:
    state = pb.DesiredState()
    state.CopyFrom(_state())
    state.probes[0].targets[0].CopyFrom(_container(pod_uid, container_id))
    desired = parse_desired(state)
    assert [target.id for target in desired.probes[0].targets] == ["b"]
    assert set(desired.refused["p"]) == {"a"}


def test_a_static_pods_hash_is_a_pod_uid() -> None:
    state = _state()
    state.probes[0].targets[0].CopyFrom(_container("0123456789abcdef" * 2))
    target = parse_desired(state).probes[0].targets[0]
    assert target.selector == ContainerSelector("0123456789abcdef" * 2, CID)


def _with_window(seconds: int, **more: Any) -> pb.DesiredState:
    state = _state()
    (probe,) = state.probes
    probe.MergeFrom(pb.Probe(window=Duration(seconds=seconds), **more))
    return state


def test_a_window_becomes_values() -> None:
    choice = pb.PodChoice(most=9, min_score=3)
    (probe,) = parse_desired(_with_window(60, max_pods=20, pods_in_full=choice)).probes
    assert probe.window == DesiredWindow(60, 20, PodChoice(9, 3))


@pytest.mark.parametrize("per_pod", [False, True])
def test_a_probe_asks_for_metrics_per_pod(*, per_pod: bool) -> None:
    (probe,) = parse_desired(_with_window(60, metrics_per_pod=per_pod)).probes
    assert probe.per_pod is per_pod


def test_objectives_become_values_but_for_stages_of_a_newer_client() -> None:
    reads = pb.Objective(stage="rx.total", percentile=99.9, max_ns=5_000_000)
    newer = pb.Objective(stage="rx.teleport", percentile=50, max_ns=1)
    (probe,) = parse_desired(_with_window(60, objectives=[newer, reads])).probes
    assert probe.objectives == (Objective("rx.total", 99.9, 5_000_000),)


@pytest.mark.parametrize(
    ("objectives", "problem"),
    [
        (
            [pb.Objective(stage="rx.total", percentile=100.5, max_ns=1)],
            "objectives[0].percentile: 100.5: must be from 0 to 100",
        ),
        (
            [pb.Objective(stage="rx.total", percentile=math.nan, max_ns=1)],
            "objectives[0].percentile: nan: must be from 0 to 100",
        ),
        (
            [pb.Objective(stage="rx.total", percentile=99)],
            "objectives[0].max_ns: 0: must be from 1 to 9007199254740991",
        ),
        ([pb.Objective()] * 65, "objectives: 65 objectives; the maximum is 64"),
    ],
)
def test_a_probe_with_an_invalid_objective_is_refused_alone(
    objectives: list[pb.Objective], problem: str
) -> None:
    desired = parse_desired(_with_window(60, objectives=objectives))
    assert not desired.probes
    assert set(desired.refused["p"].values()) == {problem}


@pytest.mark.parametrize("state", [_state(), _with_window(0, max_pods=10**6)])
def test_without_a_length_there_is_no_window(state: pb.DesiredState) -> None:
    assert parse_desired(state).probes[0].window is None


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (_with_window(1), "window: 1 s: must be from the interval, 1.5 s, to 86400 s"),
        (_with_window(86401), "window: 86401 s: must be from the interval, 1.5 s, to 86400 s"),
        (_with_window(-1), "window: -1 s: must be from the interval, 1.5 s, to 86400 s"),
        (_with_window(60, max_pods=257), "max_pods: 257: must be at most 256"),
    ],
)
def test_a_probe_with_an_invalid_window_is_refused_alone(
    state: pb.DesiredState, problem: str
) -> None:
    state.probes.append(pb.Probe(id="sound", modules=["rx"], interval=Duration(seconds=1)))
    desired = parse_desired(state)
    assert [probe.id for probe in desired.probes] == ["sound"]
    assert set(desired.refused["p"].values()) == {problem}


def test_a_container_has_names_for_reports() -> None:
    state = _state()
    names = pb.Container(pod_name="cart-7d", container_name="server")
    state.probes[0].targets[0].container.MergeFrom(names)
    target = parse_desired(state).probes[0].targets[0]
    assert (target.pod_name, target.container_name) == ("cart-7d", "server")


@pytest.mark.parametrize("field", ["pod_name", "container_name"])
@pytest.mark.parametrize("text", ["a\x1b[31m", "a" * 254])
def test_a_container_with_an_invalid_name_is_refused_alone(field: str, text: str) -> None:
    state = _state()
    setattr(state.probes[0].targets[0].container, field, text)
    desired = parse_desired(state)
    assert [target.id for target in desired.probes[0].targets] == ["b"]
    assert f"targets[0].container.{field}: " in desired.refused["p"]["a"]
