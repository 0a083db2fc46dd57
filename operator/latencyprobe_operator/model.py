"""Pods, their containers, and the choice of the containers to measure: pure.

A cluster may have a hundred thousand pods, so the types here hold what is used and no more. Strings
that many pods have in common are interned; pods of one ReplicaSet share one mapping of labels.
"""

from __future__ import annotations

import datetime
import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

_ENDED = frozenset({"Succeeded", "Failed"})
_IPV4_BYTES = 4
_ADDRESS_BYTES = (_IPV4_BYTES, 16)
# The API server takes as many as fit into 1.5 MB; all pods' labels stay in memory.
MAX_LABELS = 128
# Labels, and the names and IDs of containers, that are kept of a pod: those of some 80 containers.
# The API's own limits come to 70 KB of labels, and to megabytes of containers.
MAX_TEXTS_BYTES = 16 << 10
# Annotations of a static pod, pkg/kubelet/types/pod_update.go.
_MIRROR = "kubernetes.io/config.mirror"
_CONFIG_HASH = "kubernetes.io/config.hash"
# applyDefaults(), pkg/kubelet/config/common.go: a hash of 128 bits, unless the file has a UID.
_KUBELETS_UID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Those of kubelets: etcd, the API server, kube-proxy. See read_pod().
STATIC_POD_NAMESPACES = frozenset({"kube-system"})


@dataclass(frozen=True, slots=True)
class Container:
    """A running container. `id` is as the kubelet reports it: `containerd://0123…`."""

    name: str
    id: str


@dataclass(frozen=True, slots=True)
class Pod:
    """The parts of a pod that selection and measurement need."""

    uid: str
    name: str
    node: str
    phase: str
    labels: Mapping[str, str] = field(hash=False)
    """Shared between pods: do not change it."""
    running: str
    """A line `NAME ID` for each running container: half of the memory that objects would take.

    In the order of the names.
    """
    cgroup_uid: str
    """The UID in the names of its cgroups: of a static pod that of its file, else `uid`."""
    declared: str = ""
    """The names of its containers, sidecars included, one a line. Replicas share it."""
    host_network: bool = False
    """It shares the network namespace of its node."""
    namespace: str = ""
    addresses: bytes = b""
    """See `packed_addresses`. Empty if it shares those of its node."""
    started: int = 0
    """The earliest start of a running container, in seconds since the epoch; 0: it is unknown."""

    @property
    def containers(self) -> tuple[Container, ...]:
        """The running containers, sidecars included, in the order of their names."""
        lines = (line.partition(" ") for line in self.running.splitlines())
        return tuple(Container(sys.intern(name), container_id) for name, _, container_id in lines)

    @property
    def bound(self) -> bool:
        """Return whether containers of it may run on its node."""
        return bool(self.node) and not self.ended

    @property
    def ended(self) -> bool:
        """Return whether its containers will never run again."""
        return self.phase in _ENDED

    def sharing_with(self, before: Pod) -> Pod:
        """Return an equal pod that shares what it can with its earlier self."""
        labels = before.labels if before.labels == self.labels else self.labels
        return replace(self, uid=before.uid, name=before.name, labels=labels)

    def measured_like(self, other: Pod) -> bool:
        """Decide whether the two are equal but for their labels and addresses."""
        return self == other or self == replace(other, labels=self.labels, addresses=self.addresses)


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The parts of an agent's pod that finding and connecting to the agent need."""

    uid: str
    name: str
    node: str
    phase: str
    ip: str
    created: str
    deleting: bool

    @property
    def ended(self) -> bool:
        """Return whether the agent will never run again."""
        return self.phase in _ENDED

    def sharing_with(self, _: AgentPod) -> AgentPod:
        """Return this pod: one on each node shares nothing."""
        return self


@dataclass(frozen=True, slots=True)
class ContainerTarget:
    """One container to measure.

    `api_uid`: the pod's UID in the API server. `pod_uid`: that in the names of its cgroups, another
    one for a static pod. `running`: the container's line of `Pod.running`, which is the same string
    for a pod of one container. So a target has no string of its own.
    """

    api_uid: str
    pod_uid: str
    running: str
    pod_name: str = ""

    @property
    def id(self) -> str:
        """The pod's UID in the API server, a slash, and the ID of the container.

        Unique, and new when the container is restarted. Made on each access.
        """
        return f"{self.api_uid}/{self.container_id}"

    @property
    def name(self) -> str:
        """The name of the container."""
        return sys.intern(self.running.partition(" ")[0])

    @property
    def container_id(self) -> str:
        """The ID of the container, as the kubelet reports it."""
        return self.running.partition(" ")[2]


@dataclass(frozen=True, slots=True)
class PodTarget:
    """One pod to measure as a whole, from its first packet, that has no running container yet.

    `pod_uid`: the UID in the names of its cgroups. `api_uid`: that in the API server.
    """

    pod_uid: str
    api_uid: str
    pod_name: str
    containers: tuple[str, ...] = ()
    """The names of its containers."""


def read_pod(
    body: Mapping[str, Any],
    believe_static: Callable[[str], bool] = STATIC_POD_NAMESPACES.__contains__,
) -> Pod:
    """Read a pod of the API; raises ValueError if it has too many labels or containers.

    `believe_static`: decides if the annotations of a pod of this namespace are a kubelet's. Anyone
    who creates a pod may give it these, with the UID of any other pod of its node.
    """
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels = metadata.get("labels") or {}
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels)} labels; at most {MAX_LABELS} are kept of a pod")
    running, declared = _running_containers(spec, status), _declared_containers(spec)
    size = sum(map(len, labels)) + sum(map(len, labels.values())) + len(running) + len(declared)
    if size > MAX_TEXTS_BYTES:
        raise ValueError(
            f"{size} bytes of labels and of names of containers; at most {MAX_TEXTS_BYTES} are "
            "kept of a pod"
        )
    annotations = metadata.get("annotations") or {}
    static_uid = _static_uid(annotations) if believe_static(metadata["namespace"]) else None
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        node=sys.intern(spec.get("nodeName") or ""),
        phase=sys.intern(status.get("phase") or ""),
        labels=_shared_labels(tuple(labels.items())),
        running=running,
        cgroup_uid=static_uid or metadata["uid"],
        declared=sys.intern(declared),
        host_network=bool(spec.get("hostNetwork")),
        namespace=sys.intern(metadata["namespace"]),
        addresses=_own_addresses(spec, status),
        started=_first_start(status),
    )


def read_agent(body: Mapping[str, Any]) -> AgentPod:
    """Read an agent's pod of the API."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return AgentPod(
        uid=metadata["uid"],
        name=metadata["name"],
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "",
        ip=status.get("podIP") or "",
        created=metadata.get("creationTimestamp") or "",
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def _first_start(status: Mapping[str, Any]) -> int:
    running = (
        (each.get("state") or {}).get("running") or {}
        for each in status.get("containerStatuses") or ()
    )
    # In RFC 3339 and UTC, so that the earliest is the first by its letters.
    times = [time for each in running if isinstance(time := each.get("startedAt"), str)]
    return _shared_start(min(times)) if times else 0


# Replicas start together, and an object for each would take 32 bytes.
@functools.lru_cache(maxsize=4096)
def _shared_start(time: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(time).timestamp())
    except ValueError:
        return 0


def _own_addresses(spec: Mapping[str, Any], status: Mapping[str, Any]) -> bytes:
    if spec.get("hostNetwork") or status.get("phase") in _ENDED:
        return b""
    texts = [each.get("ip") for each in status.get("podIPs") or ()] or [status.get("podIP")]
    return packed_addresses(each for each in texts if each)


def packed_addresses(texts: Iterable[str]) -> bytes:
    """Pack the first address of each family, IPv4 first: 4, 16 or 20 bytes. No object is smaller.

    Malformed ones are left out.
    """
    packed: dict[int, bytes] = {}
    for text in texts:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        packed.setdefault(address.version, address.packed)
    return b"".join(packed[version] for version in sorted(packed))


def split_addresses(packed: bytes) -> Iterator[bytes]:
    """Yield each of the addresses of a pod."""
    if len(packed) in _ADDRESS_BYTES:
        yield packed
    elif packed:
        yield packed[:_IPV4_BYTES]
        yield packed[_IPV4_BYTES:]


def _static_uid(annotations: Mapping[str, Any]) -> str | None:
    """Return the UID that the kubelet has for a static pod; None for any other pod.

    The API server shows a static pod as its mirror, which has a UID of its own.
    """
    if _MIRROR not in annotations:
        return None
    uid = annotations.get(_CONFIG_HASH)
    return uid if isinstance(uid, str) and _KUBELETS_UID.fullmatch(uid) else None


# The API server lists replicas one after the other, and they start together.
@functools.lru_cache(maxsize=1024)
def _shared_labels(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {sys.intern(key): sys.intern(value) for key, value in items}


def _sidecars(spec: Mapping[str, Any]) -> list[str]:
    """Return the names of the init containers with restartPolicy Always.

    The other init containers end before the pod does its work.
    """
    return [
        container["name"]
        for container in spec.get("initContainers") or ()
        if container.get("restartPolicy") == "Always"
    ]


def _declared_containers(spec: Mapping[str, Any]) -> str:
    names = [container["name"] for container in spec.get("containers") or ()]
    return "\n".join(sorted((*names, *_sidecars(spec))))


def _running_containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Write the running containers, sidecars included, as `Pod.running` has them."""
    sidecars = frozenset(_sidecars(spec))
    statuses = [
        *(status.get("containerStatuses") or ()),
        *(s for s in status.get("initContainerStatuses") or () if s["name"] in sidecars),
    ]
    return "\n".join(
        sorted(
            _line(each["name"], each["containerID"])
            for each in statuses
            if (each.get("state") or {}).get("running") is not None and each.get("containerID")
        )
    )


def _line(name: str, container_id: str) -> str:
    line = f"{name} {container_id}"
    if line.split() != [name, container_id]:
        raise ValueError(f"malformed name {name!r} or ID {container_id!r} of a container")
    return line


def targets_of(pod: Pod, names: Collection[str]) -> tuple[ContainerTarget, ...]:
    """Return the pod's containers to measure: those of these names, or all without names."""
    if not pod.bound:
        return ()
    return tuple(
        ContainerTarget(pod.uid, pod.cgroup_uid, line, pod.name)
        for line in pod.running.splitlines()
        if not names or line.partition(" ")[0] in names
    )


def waiting_pod(pod: Pod, names: Collection[str]) -> PodTarget | None:
    """Return a pod without a running container as a target, once it is bound to a node.

    None if containers of these names are measured alone: their cgroups have no names.
    """
    if names or pod.running or not pod.bound:
        return None
    return PodTarget(pod.cgroup_uid, pod.uid, pod.name, tuple(pod.declared.splitlines()))


def newest_by_node(pods: Iterable[AgentPod]) -> dict[str, AgentPod]:
    """Return the agent's pod of each node: while a DaemonSet rolls out, the one that stays."""
    agents: dict[str, AgentPod] = {}
    for pod in pods:
        if pod.node and not pod.ended:
            there = agents.get(pod.node)
            if there is None or _preference(pod) > _preference(there):
                agents[pod.node] = pod
    return agents


def _preference(pod: AgentPod) -> tuple[bool, bool, str, str]:
    return (not pod.deleting, pod.phase == "Running", pod.created, pod.uid)
