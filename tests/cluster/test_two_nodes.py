"""Two nodes on one machine are two nodes for all who look from inside."""

from __future__ import annotations

from typing import Any

from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests

REQUESTS = 250


def _report_of(cluster: Cluster, namespace: str, address: str) -> dict[str, Any]:
    report = cluster.last_report(namespace, "client")
    found: dict[str, Any] = report.get("servers", {}).get(address, {})
    return found


def test_pods_reach_each_other_across_nodes(two_nodes: Cluster, namespace: str) -> None:
    first, second = two_nodes.nodes
    two_nodes.apply(manifests.server_pod("server", namespace=namespace, node=second.name))
    (server,) = two_nodes.wait_for_pods(namespace, "app=server", count=1)
    address = server["status"]["podIP"]
    two_nodes.apply(
        manifests.client_pod(
            "client",
            namespace=namespace,
            servers=[address],
            options=["--rate", "500", "--count", str(REQUESTS)],
            node=first.name,
        )
    )
    (client,) = two_nodes.wait_for_pods(namespace, "app=client", count=1)
    assert (server["spec"]["nodeName"], client["spec"]["nodeName"]) == (second.name, first.name)

    def unmet() -> str | None:
        report = _report_of(two_nodes, namespace, address)
        return None if report.get("responses") == REQUESTS else f"the client reported {report}"

    wait_until("all responses from the other node", unmet, seconds=180)


def test_pods_of_the_second_node_reach_the_api_server(two_nodes: Cluster, namespace: str) -> None:
    service = two_nodes.get("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    node = two_nodes.nodes[1].name
    pod = manifests.client_pod("client", namespace=namespace, servers=[], node=node)
    pod["spec"]["containers"][0]["args"] = ["client", "--port", "443", service]
    two_nodes.apply(pod)
    two_nodes.wait_for_pods(namespace, "app=client", count=1)

    def unmet() -> str | None:
        report = _report_of(two_nodes, namespace, service)
        return None if report.get("connects") else f"the client reported {report}"

    wait_until("a connection to the API server", unmet, seconds=100)


def test_a_node_without_its_kubelet_is_not_ready_and_comes_back(
    two_nodes: Cluster, namespace: str
) -> None:
    second = two_nodes.nodes[1]
    two_nodes.apply(manifests.server_pod("server", namespace=namespace, node=second.name))
    (before,) = two_nodes.wait_for_pods(namespace, "app=server", count=1)

    with two_nodes.pause_kubelet(second):
        assert second.process("kubelet") not in two_nodes.process_ids()

    assert two_nodes.is_ready()
    (after,) = two_nodes.wait_for_pods(namespace, "app=server", count=1)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
