"""What a client asks for, checked once and held as values.

`parse_desired` is the only door. A state that contradicts itself never gets past it. An invalid
probe or target is refused alone: the message names the field as the client wrote it, such as
`targets[0].container.pod_uid`. So is what exceeds the limits on probes and targets.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from latencyprobe.domain.fairness import TargetName, surplus_targets
from latencyprobe.domain.stages import Module
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.kernel.contract import SocketFilter

MAX_PORTS = 64
MAX_ID_LENGTH = 256
MAX_NAME_LENGTH = 512  # a namespace has up to 63 characters, the name of an object 253
MAX_PATH_LENGTH = 4095
MAX_PID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 600.0
MAX_LEASE_S = 86_400.0
PROTOCOLS = frozenset({"TCP", "UDP"})
RUNTIMES = ("containerd", "cri-o", "docker")

# A pod's UID is a UUID; a static pod's is the hash of its file.
_POD_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}")
_CONTAINER_ID = re.compile(r"(?P<runtime>[a-z-]+)://(?P<id>[0-9a-f]{64})")


class InvalidStateError(ValueError):
    """A desired state that can't be meant. `field` says where, `problem` what."""

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


@dataclass(frozen=True, slots=True)
class ContainerTarget:
    """A pod's container. Both parts are plain hexadecimal: safe as names of directories."""

    pod_uid: str
    container_id: str


@dataclass(frozen=True, slots=True)
class CgroupTarget:
    """A cgroup's directory, with all cgroups below it."""

    path: str


@dataclass(frozen=True, slots=True)
class PidTarget:
    """A process, with all its descendants."""

    pid: int


@dataclass(frozen=True, slots=True)
class NetnsTarget:
    """Every socket of a network namespace."""

    path: str


Selector = ContainerTarget | CgroupTarget | PidTarget | NetnsTarget


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that a probe measures; `id` is the client's."""

    id: str
    selector: Selector


@dataclass(frozen=True, slots=True)
class Probe:
    """One set of targets that is measured and reported alike."""

    id: str
    name: str
    modules: frozenset[Module]
    socket_filter: SocketFilter
    interval_s: float
    max_cpu_percent: float
    targets: tuple[Target, ...]
    namespace: str = ""


Refusals = Mapping[str, Mapping[str, str]]
"""Targets that are not measured, each with a message, by the ids of their probes."""


@dataclass(frozen=True, slots=True)
class Desired:
    """All that is wanted of this node. `lease_s`: 0 means for ever."""

    generation: int = 0
    probes: tuple[Probe, ...] = ()
    lease_s: float = 0.0
    refused: Refusals = field(default_factory=dict)
    """Invalid or surplus targets, which `probes` leaves out."""


NOTHING_DESIRED = Desired()


def parse_desired(message: pb.DesiredState, held: Container[TargetName] = ()) -> Desired:
    """Return the state as values; raises InvalidStateError.

    `held`: targets that were admitted before. Their namespaces keep them within their shares.
    """
    lease_s = _seconds(message.lease.seconds, message.lease.nanos)
    if not 0 <= lease_s <= MAX_LEASE_S:
        raise InvalidStateError("lease", f"{lease_s:g} s: must be from 0 to {MAX_LEASE_S:g} s")
    for index, each in enumerate(message.probes):
        _parse_id(each.id, f"probes[{index}].id")
    _check_unique((each.id for each in message.probes), "probes")
    probes: list[Probe] = []
    refused: dict[str, dict[str, str]] = defaultdict(dict)
    for each in message.probes:
        try:
            probe, invalid = _parse_probe(each)
        except InvalidStateError as error:
            refused[each.id] = {target.id: str(error) for target in each.targets}
            continue
        if invalid:
            refused[each.id] = invalid
        if probe.targets or not invalid:
            probes.append(probe)
    names = [(p.namespace, (p.id, target.id)) for p in probes for target in p.targets]
    surplus = surplus_targets(names, held)
    for (probe_id, target_id), text in surplus.items():
        refused[probe_id][target_id] = text
    admitted = tuple(admitted for p in probes if (admitted := _without(p, surplus)) is not None)
    return Desired(message.generation, admitted, lease_s, dict(refused))


def _without(probe: Probe, surplus: Container[TargetName]) -> Probe | None:
    """Return the probe without these targets; None where it loses all that it has."""
    targets = tuple(target for target in probe.targets if (probe.id, target.id) not in surplus)
    return replace(probe, targets=targets) if targets or not probe.targets else None


def _parse_probe(message: pb.Probe) -> tuple[Probe, dict[str, str]]:
    """Return the probe with its valid targets, and the messages on the others by their ids."""
    _check_unique((target.id for target in message.targets), "targets")
    targets, invalid = [], {}
    for index, each in enumerate(message.targets):
        if not each.id:
            raise InvalidStateError(f"targets[{index}].id", "is empty")
        try:
            targets.append(_parse_target(each, f"targets[{index}]"))
        except InvalidStateError as error:
            invalid[each.id] = str(error)
    probe = Probe(
        id=message.id,
        name=_parse_name(message.name, "name", MAX_NAME_LENGTH),
        modules=_parse_modules(message.modules, "modules"),
        socket_filter=_parse_filter(message.filter, "filter"),
        interval_s=_parse_interval(message, "interval"),
        max_cpu_percent=_parse_budget(message.max_cpu_percent, "max_cpu_percent"),
        targets=tuple(targets),
        namespace=_parse_namespace(message),
    )
    return probe, invalid


def _parse_namespace(message: pb.Probe) -> str:
    """Return the namespace; older clients have it in the name alone."""
    namespace, slash, _ = message.name.partition("/")
    return _parse_name(message.namespace or (namespace if slash else ""), "namespace")


def _parse_id(text: str, field: str) -> str:
    if not text:
        raise InvalidStateError(field, "is empty")
    return _parse_name(text, field)


def _parse_name(text: str, field: str, longest: int = MAX_ID_LENGTH) -> str:
    if len(text) > longest:
        raise InvalidStateError(field, f"{len(text)} characters, at most {longest}")
    if not text.isprintable():
        raise InvalidStateError(field, f"{text!r} has characters that can't be printed")
    return text


def _check_unique(ids: Iterable[str], field: str) -> None:
    seen: dict[str, int] = {}
    for index, text in enumerate(ids):
        if text in seen:
            raise InvalidStateError(
                f"{field}[{index}].id", f"{text!r} is the id of {field}[{seen[text]}] too"
            )
        seen[text] = index


def _parse_modules(names: Iterable[str], field: str) -> frozenset[Module]:
    modules = set()
    for index, name in enumerate(names):
        try:
            modules.add(Module(name))
        except ValueError:
            raise InvalidStateError(
                f"{field}[{index}]", f"unknown module {name!r}: known are {', '.join(Module)}"
            ) from None
    if not modules:
        raise InvalidStateError(field, f"none given: known are {', '.join(Module)}")
    return frozenset(modules)


def _parse_filter(message: pb.SocketFilter, field: str) -> SocketFilter:
    if len(message.ports) > MAX_PORTS:
        raise InvalidStateError(f"{field}.ports", f"{len(message.ports)}, at most {MAX_PORTS}")
    for index, port in enumerate(message.ports):
        if not 1 <= port <= 65535:
            raise InvalidStateError(f"{field}.ports[{index}]", f"{port}: must be from 1 to 65535")
    for index, protocol in enumerate(message.protocols):
        if protocol not in PROTOCOLS:
            raise InvalidStateError(
                f"{field}.protocols[{index}]", f"{protocol!r}: must be TCP or UDP"
            )
    protocols = frozenset(message.protocols)
    # Both protocols are all there are: the same filter as none, and so the same slot.
    return SocketFilter(
        frozenset(message.ports), protocols if protocols != PROTOCOLS else frozenset()
    )


def _parse_interval(message: pb.Probe, field: str) -> float:
    if not message.HasField("interval"):
        raise InvalidStateError(field, "is not set")
    interval_s = _seconds(message.interval.seconds, message.interval.nanos)
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise InvalidStateError(
            field, f"{interval_s:g} s: must be from {MIN_INTERVAL_S:g} s to {MAX_INTERVAL_S:g} s"
        )
    return interval_s


def _seconds(seconds: int, nanos: int) -> float:
    return seconds + nanos / 1e9


def _parse_budget(percent: float, field: str) -> float:
    if not math.isfinite(percent) or percent < 0:
        raise InvalidStateError(field, f"{percent}: must be 0 (no limit) or above")
    return percent


def _parse_target(message: pb.Target, field: str) -> Target:
    return Target(_parse_id(message.id, f"{field}.id"), _parse_selector(message, field))


def _parse_selector(message: pb.Target, field: str) -> Selector:
    match message.WhichOneof("selector"):
        case "container":
            return _parse_container(message.container, f"{field}.container")
        case "cgroup_path":
            return CgroupTarget(_parse_path(message.cgroup_path, f"{field}.cgroup_path"))
        case "pid":
            return _parse_pid(message.pid, f"{field}.pid")
        case "netns_path":
            return NetnsTarget(_parse_path(message.netns_path, f"{field}.netns_path"))
        case _:
            raise InvalidStateError(
                field, "no selector: give container, cgroup_path, pid or netns_path"
            )


def _parse_container(message: pb.Container, field: str) -> ContainerTarget:
    if not _POD_UID.fullmatch(message.pod_uid):
        raise InvalidStateError(
            f"{field}.pod_uid",
            f"{message.pod_uid[:80]!r} is no pod UID (a UUID, or 32 hexadecimal digits)",
        )
    parts = _CONTAINER_ID.fullmatch(message.container_id)
    if parts is None:
        raise InvalidStateError(
            f"{field}.container_id",
            f"{message.container_id[:80]!r} is no container ID "
            "(such as containerd:// with 64 hexadecimal digits)",
        )
    if parts["runtime"] not in RUNTIMES:
        raise InvalidStateError(
            f"{field}.container_id",
            f"unknown runtime {parts['runtime']!r}: known are {', '.join(RUNTIMES)}",
        )
    return ContainerTarget(message.pod_uid, parts["id"])


def _parse_path(text: str, field: str) -> str:
    if not text.startswith("/"):
        raise InvalidStateError(field, f"{text[:80]!r} is not an absolute path")
    if len(text) > MAX_PATH_LENGTH or "\0" in text:
        raise InvalidStateError(field, "is no path: too long, or with a NUL in it")
    return text


def _parse_pid(pid: int, field: str) -> PidTarget:
    if not 1 <= pid <= MAX_PID:
        raise InvalidStateError(field, f"{pid}: must be from 1 to {MAX_PID}")
    return PidTarget(pid)
