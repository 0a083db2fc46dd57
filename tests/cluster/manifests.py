"""Manifests of what the tests run in a cluster."""

from collections.abc import Mapping, Sequence
from typing import Any

from devcluster.images import PAUSE_IMAGE, WORKLOAD_IMAGE

AGENT_NAMESPACE = "latencyprobe-system"
SERVER_PORT = 7000
PORT = ("--port", str(SERVER_PORT))

# To be run in a client's container: WRITE_HOSTS FILE ADDRESS...
WRITE_HOSTS = ("/workload", "hosts")

Manifest = dict[str, Any]


def agent_placeholder(
    labels: Mapping[str, str],
    *,
    name: str = "latencyprobe-agent",
    namespace: str = AGENT_NAMESPACE,
) -> Manifest:
    """The agent's DaemonSet, as the operator sees it, for an agent that runs beside the cluster.

    Its pods hold nothing but a node's address: `status.podIP` is the node's, where the agent
    listens when it is started with `Cluster.node_exec_prefix()`.
    """
    pod = {"hostNetwork": True, "containers": [_container("agent", PAUSE_IMAGE)]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        },
    }


def server_deployment(
    name: str, *, namespace: str, replicas: int, options: Sequence[str] = ()
) -> Manifest:
    """Pods labelled app=NAME that answer at SERVER_PORT. workload.c documents the options.

    They have no readiness probe: its connections would be measured with the client's.
    """
    labels = {"app": name}
    server = {
        **_container("server", WORKLOAD_IMAGE, "server", *PORT, *options),
        "ports": [{"containerPort": SERVER_PORT}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [server]}},
        },
    }


def server_pod(
    name: str, *, namespace: str, node: str, app: str = "server", options: Sequence[str] = ()
) -> Manifest:
    """A pod labelled app=APP on this node that answers at SERVER_PORT."""
    server = _container("server", WORKLOAD_IMAGE, "server", *PORT, *options)
    return _pod(name, namespace, app, server, node=node)


def client_pod(
    name: str,
    *,
    namespace: str,
    servers: Sequence[str],
    options: Sequence[str] = (),
    node: str | None = None,
) -> Manifest:
    """A pod labelled app=NAME, on this node or on any, that sends requests to the servers'
    addresses."""
    arguments = ["client", *PORT, *options, *servers]
    client = _container("client", WORKLOAD_IMAGE, *arguments)
    return _pod(name, namespace, name, client, node=node)


def _pod(name: str, namespace: str, app: str, container: Manifest, *, node: str | None) -> Manifest:
    hostname = {"kubernetes.io/hostname": node} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"nodeSelector": hostname, "containers": [container]},
    }


def _container(name: str, image: str, *arguments: str) -> Manifest:
    return {"name": name, "image": image, "args": list(arguments)}
