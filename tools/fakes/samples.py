"""API objects and values for the operator's tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from latencyprobe_operator.api.spec import ProbeSpec, read_probe
from latencyprobe_operator.model import Container, Pod, read_pod

Json = dict[str, Any]


def probe_body(
    name: str = "checkout", *, namespace: str = "shop", generation: int = 1, **spec: Any
) -> Json:
    """Return a LatencyProbe as the API server shows it, with defaults."""
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
    """Return a probe's spec."""
    return read_probe(probe_body(name, **spec))


def pod_body(
    name: str,
    *,
    node: str = "node-a",
    containers: tuple[str, ...] = ("server",),
    run: int = 1,
    labels: dict[str, str] | None = None,
    namespace: str = "shop",
    host_network: bool = False,
    ips: tuple[str, ...] = ("10.0.0.1",),
) -> Json:
    """Return a running pod as the API server shows it. `run` counts its containers' starts."""
    return {
        "metadata": {
            "uid": f"uid-{name}",
            "namespace": namespace,
            "name": name,
            "labels": labels or {},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": c} for c in containers],
            **({"hostNetwork": True} if host_network else {}),
        },
        "status": {
            "phase": "Running",
            "podIP": ips[0],
            "podIPs": [{"ip": ip} for ip in ips],
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
    """Return a running pod."""
    return read_pod(pod_body(name, **parts))


def container(pod_name: str, name: str = "server", run: int = 1) -> Container:
    """Return the container that `pod_body` gives a pod."""
    return Container(name, f"containerd://{pod_name}-{name}-{run}")


def target_id(pod_name: str, name: str = "server", run: int = 1) -> str:
    """Return the target id of this container."""
    return f"uid-{pod_name}/containerd://{pod_name}-{name}-{run}"


def pod_texts(count: int) -> Iterator[str]:
    """Yield the JSON of realistic pods: ten replicas each, two containers, five labels."""
    for number in range(count):
        app = f"checkout-{number // 10}"
        name = f"{app}-7d4b9c6f5-{number:05x}"
        body: Json = pod_body(
            name,
            node=f"ip-10-0-{number % 100}-17.eu-central-1.compute.internal",
            containers=("server", "istio-proxy"),
            labels={
                "app.kubernetes.io/name": app,
                "app.kubernetes.io/instance": app,
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/version": "1.27.3",
                "pod-template-hash": f"7d4b9c{number // 10:04x}",
            },
        )
        body["metadata"]["uid"] = f"0e7c1b1e-8f43-4a5c-9d1f-{number:012x}"
        body["status"]["podIP"] = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        body["status"]["podIPs"] = [{"ip": body["status"]["podIP"]}]
        for index, status in enumerate(body["status"]["containerStatuses"]):
            status["containerID"] = f"containerd://{number * 2 + index:064x}"
        yield json.dumps(body)
