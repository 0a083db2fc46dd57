"""The cluster is a real Kubernetes, and an agent beside it sees what it would on a node."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devcluster import cgroups
from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests

REQUESTS = 250

EVEN_NUMBERS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "evens.example.test"},
    "spec": {
        "group": "example.test",
        "names": {"kind": "Even", "plural": "evens"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "number": {
                                "type": "integer",
                                "x-kubernetes-validations": [
                                    {"rule": "self % 2 == 0", "message": "must be even"}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}

# Listens at the address it is given, says so, and answers one connection.
ANSWER_ONCE = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
listener.accept()[0].sendall(b"here")
"""


def wait_until_allowed(cluster: Cluster, *command: str) -> None:
    """Wait until the API server no longer refuses this command."""

    def unmet() -> str | None:
        try:
            cluster.kubectl(*command)
        except KubectlError as error:
            return error.stderr
        return None

    wait_until(f"kubectl {' '.join(command)}", unmet, seconds=60)


def _addresses(pods: list[Any]) -> list[str]:
    return [pod["status"]["podIP"] for pod in pods]


def test_the_node_is_ready_and_of_the_pinned_version(cluster: Cluster) -> None:
    node = cluster.get("node", cluster.node_name)

    conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.36.")


def test_requests_between_pods_are_counted_alike_by_both_ends(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(manifests.server_deployment("server", namespace=namespace, replicas=2))
    servers = cluster.wait_for_pods(namespace, "app=server", count=2)
    options = ["--rate", "500", "--count", str(REQUESTS)]
    cluster.apply(
        manifests.client_pod(
            "client", namespace=namespace, servers=_addresses(servers), options=options
        )
    )
    cluster.wait_for_pods(namespace, "app=client", count=1)

    def unmet_done() -> str | None:
        report = cluster.last_report(namespace, "client")
        return None if report.get("done") else f"the client reported {report}"

    wait_until("the client's last response", unmet_done, seconds=180)
    sent = {"requests": REQUESTS, "responses": REQUESTS, "connects": 1}
    report = cluster.last_report(namespace, "client")
    assert report["servers"] == dict.fromkeys(_addresses(servers), sent)

    received = {"requests": REQUESTS, "responses": REQUESTS, "accepts": 1, "open": 1}
    for server in servers:
        name = server["metadata"]["name"]

        def unmet_equal(name: str = name) -> str | None:
            report = cluster.last_report(namespace, name)
            return None if report == received else f"{name} reported {report}"

        wait_until(f"all requests to be counted by {name}", unmet_equal, seconds=100)


def test_a_running_client_takes_on_servers_from_its_list(cluster: Cluster, namespace: str) -> None:
    cluster.apply(
        manifests.server_deployment("server", namespace=namespace, replicas=1),
        manifests.client_pod(
            "client", namespace=namespace, servers=[], options=["--hosts-file", "/hosts"]
        ),
    )
    (server,) = cluster.wait_for_pods(namespace, "app=server", count=1)
    cluster.wait_for_pods(namespace, "app=client", count=1)
    address = server["status"]["podIP"]

    command = [*manifests.WRITE_HOSTS, "/hosts", address]
    cluster.kubectl("exec", "client", f"--namespace={namespace}", "--", *command)

    def unmet() -> str | None:
        report = cluster.last_report(namespace, "client")
        counts = report.get("servers", {}).get(address, {})
        return None if counts.get("responses") else f"the client reported {report}"

    wait_until("responses of the new server", unmet, seconds=100)


def test_a_container_is_where_its_pods_cgroup_is(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifests.server_deployment("server", namespace=namespace, replicas=1))
    (pod,) = cluster.wait_for_pods(namespace, "app=server", count=1)

    uid = pod["metadata"]["uid"]
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    kubepods = cluster.nodes[0].kubepods_cgroup
    path = f"{kubepods}/besteffort/pod{uid}/{container}"
    processes = (cgroups.unified_hierarchy() / path / "cgroup.procs").read_text().split()

    assert len(processes) == 1
    assert f"0::/{path}" in Path(f"/proc/{processes[0]}/cgroup").read_text().splitlines()


def test_a_rule_of_a_custom_resource_is_enforced(cluster: Cluster, namespace: str) -> None:
    cluster.apply(EVEN_NUMBERS)
    cluster.kubectl("wait", "--for=condition=Established", "crd/evens.example.test")
    wait_until_allowed(cluster, "get", "evens.example.test")  # it is served a moment later
    even = {"apiVersion": "example.test/v1", "kind": "Even", "number": 2}

    cluster.apply({**even, "metadata": {"name": "two", "namespace": namespace}})
    with pytest.raises(KubectlError, match="must be even"):
        cluster.apply({**even, "number": 3, "metadata": {"name": "three", "namespace": namespace}})


def test_an_agent_beside_the_cluster_is_reached_at_its_placeholders_address(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(manifests.agent_placeholder({"app": "agent"}, namespace=namespace))
    (pod,) = cluster.wait_for_pods(namespace, "app=agent", count=1)
    assert pod["spec"]["nodeName"] == cluster.node_name
    address = pod["status"]["podIP"]
    assert address == str(cluster.node_ip)

    agent = [*cluster.node_exec_prefix(), sys.executable, "-c", ANSWER_ONCE, address]
    with subprocess.Popen(agent, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        port = int(running.stdout.readline())
        with socket.create_connection((address, port), timeout=10) as connection:
            assert connection.recv(4) == b"here"


def test_a_service_account_may_do_what_its_roles_say_and_no_more(
    cluster: Cluster, namespace: str
) -> None:
    own = f"--namespace={namespace}"
    cluster.kubectl("create", "serviceaccount", "reader", own)
    cluster.kubectl("create", "role", "read-pods", "--verb=list", "--resource=pods", own)
    account = f"--serviceaccount={namespace}:reader"
    cluster.kubectl("create", "rolebinding", "read-pods", "--role=read-pods", account, own)
    config = f"--kubeconfig={cluster.service_account_kubeconfig(namespace, 'reader')}"

    wait_until_allowed(cluster, "get", "pods", config)  # the API server reads roles by a watch
    with pytest.raises(KubectlError, match="cannot list resource"):
        cluster.kubectl("get", "secrets", config)


def test_pods_reach_the_api_server_at_its_service_address(cluster: Cluster, namespace: str) -> None:
    service = cluster.get("service", "kubernetes", "--namespace=default")
    pod = manifests.client_pod("client", namespace=namespace, servers=[])
    address = service["spec"]["clusterIP"]
    pod["spec"]["containers"][0]["args"] = ["client", "--port", "443", address]
    cluster.apply(pod)
    cluster.wait_for_pods(namespace, "app=client", count=1)

    def unmet() -> str | None:
        report = cluster.last_report(namespace, "client")
        counts = report.get("servers", {}).get(address, {})
        return None if counts.get("connects") else f"the client reported {report}"

    wait_until("a connection to the API server", unmet, seconds=100)


def test_pods_outlive_an_absence_of_the_api_server(cluster: Cluster, namespace: str) -> None:
    cluster.apply(manifests.server_deployment("server", namespace=namespace, replicas=1))
    (before,) = cluster.wait_for_pods(namespace, "app=server", count=1)

    with cluster.pause_api_server(), pytest.raises(KubectlError, match="refused"):
        cluster.get("pods")

    (after,) = cluster.wait_for_pods(namespace, "app=server", count=1)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
