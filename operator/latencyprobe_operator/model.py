"""Which containers of which pods a probe measures: pure, from pods as the API server shows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Container:
    """A running container. `id` is as the kubelet reports it: `containerd://0123…`."""

    name: str
    id: str


@dataclass(frozen=True, slots=True)
class Pod:
    """What we need of a pod; the rest is not kept, since there may be ten thousand of them."""

    uid: str
    name: str
    node: str
    phase: str
    ip: str
    created: str
    deleting: bool
    containers: tuple[Container, ...]

    @property
    def ended(self) -> bool:
        """Whether its containers will never run again."""
        return self.phase in _ENDED


@dataclass(frozen=True, slots=True)
class Target:
    """One container to measure. `id` is unique, and new when the container is restarted."""

    id: str
    pod_uid: str
    container: Container


def read_pod(body: Mapping[str, Any]) -> Pod:
    """The pod of an API object."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return Pod(
        uid=metadata["uid"],
        name=metadata["name"],
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "",
        ip=status.get("podIP") or "",
        created=metadata.get("creationTimestamp") or "",
        deleting=bool(metadata.get("deletionTimestamp")),
        containers=_running_containers(spec, status),
    )


def _running_containers(
    spec: Mapping[str, Any], status: Mapping[str, Any]
) -> tuple[Container, ...]:
    """The running containers, sidecars included, in a fixed order.

    A sidecar is an init container with restartPolicy Always; the other init containers end before
    the pod does its work.
    """
    sidecars = {
        container["name"]
        for container in spec.get("initContainers") or ()
        if container.get("restartPolicy") == "Always"
    }
    statuses = [
        *(status.get("containerStatuses") or ()),
        *(s for s in status.get("initContainerStatuses") or () if s["name"] in sidecars),
    ]
    running = (
        Container(each["name"], each["containerID"])
        for each in statuses
        if (each.get("state") or {}).get("running") is not None and each.get("containerID")
    )
    return tuple(sorted(running, key=lambda container: container.name))


def targets_of(pod: Pod, names: Collection[str]) -> tuple[Target, ...]:
    """The pod's containers to measure: those of these names, or all where no name is given."""
    if not pod.node or pod.ended:
        return ()
    return tuple(
        Target(f"{pod.uid}/{container.id}", pod.uid, container)
        for container in pod.containers
        if not names or container.name in names
    )


def newest_by_node(pods: Collection[Pod]) -> dict[str, Pod]:
    """For each node the agent's pod there: while a DaemonSet rolls out, the one that stays."""
    agents: dict[str, Pod] = {}
    for pod in pods:
        if pod.node and not pod.ended:
            there = agents.get(pod.node)
            if there is None or _preference(pod) > _preference(there):
                agents[pod.node] = pod
    return agents


def _preference(pod: Pod) -> tuple[bool, bool, str, str]:
    return (not pod.deleting, pod.phase == "Running", pod.created, pod.uid)
