"""API objects and values that the operator's tests are made of."""

from __future__ import annotations

from typing import Any

from latencyprobe_operator.api.spec import ProbeSpec, read_probe
from latencyprobe_operator.model import Container, Pod, read_pod

Json = dict[str, Any]


def probe_body(
    name: str = "checkout", *, namespace: str = "shop", generation: int = 1, **spec: Any
) -> Json:
    """A LatencyProbe as the API server shows it: defaults are filled in."""
    return {
        "metadata": {
            "uid": f"uid-{name}",
            "namespace": namespace,
            "name": name,
            "generation": generation,
        },
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "modules": ["rx", "tx", "tcp"],
            "interval": "10s",
            "window": "60s",
            "suspend": False,
            "overhead": {"maxCPUPercent": 1},
            "report": {"maxPods": 20},
            **spec,
        },
    }


def probe_spec(name: str = "checkout", **spec: Any) -> ProbeSpec:
    """A probe's spec."""
    return read_probe(probe_body(name, **spec))


def pod_body(
    name: str,
    *,
    node: str = "node-a",
    containers: tuple[str, ...] = ("server",),
    run: int = 1,
    labels: dict[str, str] | None = None,
) -> Json:
    """A running pod as the API server shows it. `run` counts its containers' starts."""
    return {
        "metadata": {
            "uid": f"uid-{name}",
            "namespace": "shop",
            "name": name,
            "labels": labels or {},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": node, "containers": [{"name": c} for c in containers]},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [
                {
                    "name": container,
                    "containerID": f"containerd://{name}-{container}-{run}",
                    "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
                }
                for container in containers
            ],
        },
    }


def pod(name: str, **parts: Any) -> Pod:
    """A running pod."""
    return read_pod(pod_body(name, **parts))


def container(pod_name: str, name: str = "server", run: int = 1) -> Container:
    """The container that `pod_body` gives a pod."""
    return Container(name, f"containerd://{pod_name}-{name}-{run}")


def target_id(pod_name: str, name: str = "server", run: int = 1) -> str:
    """The id of the target that this container is."""
    return f"uid-{pod_name}/containerd://{pod_name}-{name}-{run}"
