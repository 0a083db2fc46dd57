"""Requests of a client, checked and decoded to values.

An inconsistent request is refused as a whole, and the message names the field as the client wrote
it. An invalid probe or target of a desired state is refused alone, with a message such as
`targets[0].container.pod_uid: …`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from latencyprobe.domain.attention import Objective
from latencyprobe.domain.packets import LONGEST_NS
from latencyprobe.domain.stages import BY_NAME, PACKET_STAGES, Module
from latencyprobe.protocol.limits import LARGEST_NUMBER
from latencyprobe.protocol.summaries import (
    MAX_CONTAINERS,
    MAX_POD_NAME_LENGTH,
    MAX_PODS,
    choice_from_proto,
)
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import (
    CgroupSelector,
    ContainerSelector,
    Desired,
    DesiredProbe,
    DesiredTarget,
    DesiredWindow,
    InvalidStateError,
    NetnsSelector,
    PidSelector,
    PodSelector,
    Selector,
    pod_uid,
)
from latencyprobe_agent.kernel.contract import SocketFilter
from latencyprobe_agent.tracing import TraceWish

MAX_PORTS = 64
MAX_OBJECTIVES = 64
MAX_ID_LENGTH = 256
MAX_NAME_LENGTH = 512  # a namespace has up to 63 characters, the name of an object 253
MAX_PATH_LENGTH = 4095
MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 600.0
MAX_WINDOW_S = 86_400.0
MAX_LEASE_S = 86_400.0
PROTOCOLS = frozenset({"TCP", "UDP"})
RUNTIMES = ("containerd", "cri-o", "docker")

# A pod's UID is a UUID; a static pod's is the hash of its file.
_POD_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
_CONTAINER_ID = re.compile(r"(?P<runtime>[a-z-]+)://(?P<id>[0-9a-f]{64})")

_WHOLE_PERCENT = 100
_PACKET_STAGES = tuple(stage.name for stage in PACKET_STAGES)


def parse_desired(message: pb.DesiredState, *, only_containers: bool = False) -> Desired:
    """Decode a desired state; raise InvalidStateError. Limits on its size are not checked.

    `only_containers`: targets of other kinds are refused one by one.
    """
    lease_s = _duration_s(message.lease.seconds, message.lease.nanos)
    if not 0 <= lease_s <= MAX_LEASE_S:
        raise InvalidStateError("lease", f"{lease_s:g} s: must be from 0 to {MAX_LEASE_S:g} s")
    for index, each in enumerate(message.probes):
        _parse_id(each.id, f"probes[{index}].id")
    _check_unique((each.id for each in message.probes), "probes")
    probes: list[DesiredProbe] = []
    refused: dict[str, dict[str, str]] = {}
    for each in message.probes:
        try:
            probe, invalid = _parse_probe(each, only_containers=only_containers)
        except InvalidStateError as error:
            refused[each.id] = dict.fromkeys(_ids(each), str(error))
            continue
        if invalid:
            refused[each.id] = invalid
        if probe.targets or not invalid:
            probes.append(probe)
    return Desired(message.generation, tuple(probes), lease_s, refused, message.term)


def parse_trace(message: pb.TraceRequest) -> TraceWish:
    """Decode a request for a trace; raise InvalidStateError."""
    if not message.probe_id:
        raise InvalidStateError("probe_id", "is empty")
    if not message.limits:
        raise InvalidStateError(
            "limits", "is empty: give at least one stage with a minimum duration"
        )
    limits_ns: dict[str, int] = {}
    for index, limit in enumerate(message.limits):
        _check_limit(limit, f"limits[{index}]")
        if limit.stage in limits_ns:
            raise InvalidStateError(f"limits[{index}].stage", f"{limit.stage!r} is repeated")
        limits_ns[limit.stage] = limit.min_ns
    return TraceWish(message.probe_id, limits_ns, message.max_packets_per_second)


def _check_limit(limit: pb.StageLimit, field: str) -> None:
    if limit.stage not in _PACKET_STAGES:
        raise InvalidStateError(
            f"{field}.stage",
            f"{limit.stage[:80]!r} cannot be traced per packet; choose one of "
            f"{', '.join(_PACKET_STAGES)}",
        )
    if limit.min_ns > LONGEST_NS:
        raise InvalidStateError(
            f"{field}.min_ns", f"{limit.min_ns} is too long: the maximum is {LONGEST_NS}"
        )


def _parse_probe(
    message: pb.Probe, *, only_containers: bool
) -> tuple[DesiredProbe, dict[str, str]]:
    """Return the probe with its valid targets, and the messages on the others by their ids."""
    _check_unique((target.id for target in message.targets), "targets")
    _check_unique((pod.uid for pod in message.pods), "pods")
    _check_unique(_ids(message), "targets")
    pods, invalid = _parse_pods(message.pods)
    targets: list[DesiredTarget] = []
    parts: dict[str, str] = {}
    for index, each in enumerate(message.targets):
        if not each.id:
            raise InvalidStateError(f"targets[{index}].id", "is empty")
        try:
            if only_containers:
                _check_is_container(each, f"targets[{index}]")
            target = _parse_target(each, f"targets[{index}]")
        except InvalidStateError as error:
            invalid[each.id] = str(error)
            continue
        if each.container.whole_pod:
            pod = pods[pod_uid(target)] = _whole_pod(target, pods)
            parts[target.id] = pod.id
        else:
            targets.append(target)
    _check_unique((*pods, *(target.id for target in targets), *parts), "targets")
    interval_s = _parse_interval(message, "interval")
    probe = DesiredProbe(
        id=message.id,
        name=_parse_name(message.name, "name", MAX_NAME_LENGTH),
        modules=_parse_modules(message.modules, "modules"),
        socket_filter=_parse_filter(message.filter, "filter"),
        interval_s=interval_s,
        max_cpu_percent=_parse_budget(message.max_cpu_percent, "max_cpu_percent"),
        targets=(*pods.values(), *targets),
        namespace=_parse_namespace(message),
        node_figures=message.node_figures,
        window=_parse_window(message, interval_s),
        parts=parts,
        per_pod=message.metrics_per_pod,
        objectives=_parse_objectives(message.objectives, "objectives"),
    )
    return probe, invalid


def _ids(message: pb.Probe) -> Iterable[str]:
    """Return the ids of a probe's targets: a pod's is its UID."""
    return (*(target.id for target in message.targets), *(pod.uid for pod in message.pods))


def _parse_pods(
    messages: Iterable[pb.Pod],
) -> tuple[dict[str, DesiredTarget], dict[str, str]]:
    """Return the valid pods by their UIDs, and the messages on the others."""
    pods: dict[str, DesiredTarget] = {}
    invalid: dict[str, str] = {}
    for index, each in enumerate(messages):
        if not each.uid:
            raise InvalidStateError(f"pods[{index}].uid", "is empty")
        try:
            pods[each.uid] = _parse_pod(each, f"pods[{index}]")
        except InvalidStateError as error:
            invalid[each.uid] = str(error)
    return pods, invalid


def _parse_pod(message: pb.Pod, field: str) -> DesiredTarget:
    return DesiredTarget(
        message.uid,
        PodSelector(_parse_pod_uid(message.uid, f"{field}.uid")),
        _parse_name(message.name, f"{field}.name", MAX_POD_NAME_LENGTH),
        containers=tuple(
            _parse_name(name, f"{field}.containers", MAX_POD_NAME_LENGTH)
            for name in message.containers[:MAX_CONTAINERS]
        ),
    )


def _whole_pod(container: DesiredTarget, pods: Mapping[str, DesiredTarget]) -> DesiredTarget:
    """Return the pod of a container, with the container's name."""
    uid = pod_uid(container)
    pod = pods.get(uid, DesiredTarget(uid, PodSelector(uid), container.pod_name))
    names = dict.fromkeys((*pod.containers, container.container_name))
    return replace(pod, containers=tuple(names)[:MAX_CONTAINERS])


def _parse_namespace(message: pb.Probe) -> str:
    """Return the namespace; older clients have it only in the name."""
    namespace, slash, _ = message.name.partition("/")
    return _parse_name(message.namespace or (namespace if slash else ""), "namespace")


def _parse_id(text: str, field: str) -> str:
    if not text:
        raise InvalidStateError(field, "is empty")
    return _parse_name(text, field)


def _parse_name(text: str, field: str, longest: int = MAX_ID_LENGTH) -> str:
    if len(text) > longest:
        raise InvalidStateError(field, f"{len(text)} characters; the maximum is {longest}")
    if not text.isprintable():
        raise InvalidStateError(field, f"{text!r} has characters that are not printable")
    return text


def _check_unique(ids: Iterable[str], field: str) -> None:
    seen: dict[str, int] = {}
    for index, text in enumerate(ids):
        if text in seen:
            raise InvalidStateError(
                f"{field}[{index}].id", f"{text!r} is also the id of {field}[{seen[text]}]"
            )
        seen[text] = index


def _parse_modules(names: Sequence[str], field: str) -> frozenset[Module]:
    """Return the modules that this agent knows.

    The coverage lacks the stages of others, which a newer client may want.
    """
    modules = frozenset(module for module in Module if module in names)
    if names and not modules:
        raise InvalidStateError(
            f"{field}[0]", f"unknown module {names[0]!r}; choose from {', '.join(Module)}"
        )
    if not modules:
        raise InvalidStateError(field, f"is empty; choose from {', '.join(Module)}")
    return modules


def _parse_filter(message: pb.SocketFilter, field: str) -> SocketFilter:
    if len(message.ports) > MAX_PORTS:
        raise InvalidStateError(
            f"{field}.ports", f"{len(message.ports)} ports; the maximum is {MAX_PORTS}"
        )
    for index, port in enumerate(message.ports):
        if not 1 <= port <= 65535:
            raise InvalidStateError(f"{field}.ports[{index}]", f"{port}: must be from 1 to 65535")
    for index, protocol in enumerate(message.protocols):
        if protocol not in PROTOCOLS:
            raise InvalidStateError(
                f"{field}.protocols[{index}]", f"{protocol!r}: must be TCP or UDP"
            )
    protocols = frozenset(message.protocols)
    # Both protocols are all that exist: the same filter as no protocol, and so the same slot.
    return SocketFilter(
        frozenset(message.ports), protocols if protocols != PROTOCOLS else frozenset()
    )


def _parse_objectives(messages: Sequence[pb.Objective], field: str) -> tuple[Objective, ...]:
    """Return the objectives on stages that this agent knows."""
    if len(messages) > MAX_OBJECTIVES:
        raise InvalidStateError(
            field, f"{len(messages)} objectives; the maximum is {MAX_OBJECTIVES}"
        )
    for index, each in enumerate(messages):
        if not 0 <= each.percentile <= _WHOLE_PERCENT:
            raise InvalidStateError(
                f"{field}[{index}].percentile", f"{each.percentile}: must be from 0 to 100"
            )
        if not 1 <= each.max_ns <= LARGEST_NUMBER:
            raise InvalidStateError(
                f"{field}[{index}].max_ns", f"{each.max_ns}: must be from 1 to {LARGEST_NUMBER}"
            )
    return tuple(
        Objective(each.stage, each.percentile, each.max_ns)
        for each in messages
        if each.stage in BY_NAME
    )


def _parse_interval(message: pb.Probe, field: str) -> float:
    if not message.HasField("interval"):
        raise InvalidStateError(field, "is not set")
    interval_s = _duration_s(message.interval.seconds, message.interval.nanos)
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise InvalidStateError(
            field, f"{interval_s:g} s: must be from {MIN_INTERVAL_S:g} s to {MAX_INTERVAL_S:g} s"
        )
    return interval_s


def _parse_window(message: pb.Probe, interval_s: float) -> DesiredWindow | None:
    """Return the window; None for 0, with which a client keeps the windows itself."""
    window_s = _duration_s(message.window.seconds, message.window.nanos)
    if not window_s:
        return None
    if not interval_s <= window_s <= MAX_WINDOW_S:
        raise InvalidStateError(
            "window",
            f"{window_s:g} s: must be from the interval, {interval_s:g} s, to {MAX_WINDOW_S:g} s",
        )
    if message.max_pods > MAX_PODS:
        raise InvalidStateError("max_pods", f"{message.max_pods}: must be at most {MAX_PODS}")
    return DesiredWindow(window_s, message.max_pods, choice_from_proto(message.pods_in_full))


def _duration_s(seconds: int, nanos: int) -> float:
    return seconds + nanos / 1e9


def _parse_budget(percent: float, field: str) -> float:
    if not math.isfinite(percent) or percent < 0:
        raise InvalidStateError(field, f"{percent}: must be 0 (no limit) or above")
    return percent


def _check_is_container(message: pb.Target, field: str) -> None:
    kind = message.WhichOneof("selector")
    if kind not in (None, "container"):
        raise InvalidStateError(
            f"{field}.{kind}",
            "over TLS an agent measures containers only; for processes, cgroups and network "
            "namespaces use `latencyprobe run` on the node",
        )


def _parse_target(message: pb.Target, field: str) -> DesiredTarget:
    names = message.container
    return DesiredTarget(
        _parse_id(message.id, f"{field}.id"),
        _parse_selector(message, field),
        _parse_name(names.pod_name, f"{field}.container.pod_name", MAX_POD_NAME_LENGTH),
        _parse_name(names.container_name, f"{field}.container.container_name", MAX_POD_NAME_LENGTH),
    )


def _parse_selector(message: pb.Target, field: str) -> Selector:
    match message.WhichOneof("selector"):
        case "container":
            return _parse_container(message.container, f"{field}.container")
        case "cgroup_path":
            path = os.fsdecode(message.cgroup_path)
            return CgroupSelector(_parse_path(path, f"{field}.cgroup_path"))
        case "pid":
            return _parse_pid(message.pid, f"{field}.pid")
        case "netns_path":
            path = os.fsdecode(message.netns_path)
            return NetnsSelector(_parse_path(path, f"{field}.netns_path"))
        case _:
            raise InvalidStateError(
                field, "no selector: give container, cgroup_path, pid or netns_path"
            )


def _parse_container(message: pb.Container, field: str) -> ContainerSelector:
    uid = _parse_pod_uid(message.pod_uid, f"{field}.pod_uid")
    parts = _CONTAINER_ID.fullmatch(message.container_id)
    if parts is None:
        raise InvalidStateError(
            f"{field}.container_id",
            f"{message.container_id[:80]!r} is not a container ID "
            "(for example containerd:// with 64 hexadecimal digits)",
        )
    if parts["runtime"] not in RUNTIMES:
        raise InvalidStateError(
            f"{field}.container_id",
            f"unknown runtime {parts['runtime']!r}; choose one of {', '.join(RUNTIMES)}",
        )
    return ContainerSelector(uid, parts["id"])


def _parse_pod_uid(text: str, field: str) -> str:
    if not _POD_UID.fullmatch(text):
        raise InvalidStateError(
            field, f"{text[:80]!r} is not a pod UID (a UUID, or 32 hexadecimal digits)"
        )
    return text


def _parse_path(text: str, field: str) -> str:
    if not text.startswith("/"):
        raise InvalidStateError(field, f"{text[:80]!r} is not an absolute path")
    if len(text) > MAX_PATH_LENGTH or "\0" in text:
        raise InvalidStateError(field, "is not a path: it is too long, or contains a NUL")
    return text


def _parse_pid(pid: int, field: str) -> PidSelector:
    if not 1 <= pid <= MAX_PID:
        raise InvalidStateError(field, f"{pid}: must be from 1 to {MAX_PID}")
    return PidSelector(pid)
