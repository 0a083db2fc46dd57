"""What happens to a release: changes, restarts, outages. Measurement goes on, or says why not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from tests.cluster import manifests
from tests.cluster.release import AGENT_NAMESPACE, AGENTS, OPERATOR
from tests.cluster.shop import LIVE, Shop, counts, node_told
from tools.helm.chart import CHART, NAMESPACE

REQUESTS = 400


def test_a_deleted_agent_pod_comes_back_and_measures(shop: Shop) -> None:
    shop.wait_until_both_nodes_report()
    node = shop.cluster.nodes[1]
    before = shop.release.agents()[node.name]["metadata"]["uid"]
    shop.cluster.kubectl(
        *("delete", "pods", f"--namespace={AGENT_NAMESPACE}", f"--selector={AGENTS}"),
        f"--field-selector=spec.nodeName={node.name}",
    )

    shop.wait_until_both_nodes_report()
    assert shop.release.agents()[node.name]["metadata"]["uid"] != before


def test_measurement_outlives_the_operators_pods(shop: Shop) -> None:
    shop.wait_until_both_nodes_report()
    before = set(shop.release.operators())
    attached = shop.release.program_ids()
    assert attached
    shop.cluster.kubectl("delete", "pods", f"--namespace={NAMESPACE}", f"--selector={OPERATOR}")

    shop.wait_until_both_nodes_report()
    assert not before & set(shop.release.operators())
    assert shop.release.program_ids() == attached


def test_a_node_without_kubelet_is_measured_and_without_agent_is_stale(
    shop: Shop,
) -> None:
    shop.wait_until_both_nodes_report()
    first, second = shop.cluster.nodes
    with shop.cluster.pause_kubelet(second):
        shop.wait_until_both_nodes_report()

        shop.release.kill_agent(second)
        status = shop.wait(
            "the age of what the node reported last, and its figures gone from the window",
            lambda status: (
                age_told(node_told(status, second.name)) >= 10
                and not counts(status, "rx.total").get("checkout-2")
            ),
            seconds=180,
        )
        node = node_told(status, second.name)
        assert node["state"] == "Unreachable"
        assert node["lastReportTime"] < status["lastReportTime"]
        assert node_told(status, first.name).get("state") in (None, "Partial")
        assert status["phase"] == "Degraded"
        assert status["targets"]["readyNodes"] == 1
        assert counts(status, "rx.total")["checkout-1"]

    status = shop.wait_until_both_nodes_report()
    assert "lastReportTime" not in node_told(status, second.name)
    assert status["phase"] == "Running"


def age_told(node: dict[str, Any]) -> int:
    """The age of a node's last report, in seconds; -1 if none is told."""
    found = re.search(r"last report (?:(\d+)m)?(\d+)s ago", node.get("message", ""))
    return 60 * int(found[1] or 0) + int(found[2]) if found else -1


# Longer than a Lease lasts, so that no operator leads at its end.
@pytest.mark.parametrize("outage_seconds", [20, pytest.param(60, marks=pytest.mark.thorough)])
def test_measurement_goes_on_while_the_api_server_is_away(
    shop: Shop, namespace: str, outage_seconds: int
) -> None:
    cluster = shop.cluster
    node = cluster.nodes[1].name
    cluster.apply(manifests.server_pod("server", namespace=namespace, node=node))
    (server,) = cluster.wait_for_pods(namespace, "app=server", count=1)
    probe = _probe_of_everything(namespace)
    cluster.apply(probe)
    probed = Shop(shop.release, namespace)
    probed.wait("readiness", _is_ready)
    probed.add_client(
        "client",
        cluster.nodes[0].name,
        [server["status"]["podIP"]],
        rate=REQUESTS * 2 // outage_seconds,
        count=REQUESTS,
    )
    cluster.wait_for_pods(namespace, "app=client", count=1)
    with cluster.pause_api_server():
        time.sleep(outage_seconds)  # the outage itself

    status = probed.wait(
        "the status to catch up with what was exchanged meanwhile",
        # The client began before it was measured.
        lambda status: counts(status, "rx.total").get("server") == REQUESTS,
    )
    (served,) = (pod for pod in status["pods"] if pod["name"] == "server")
    again = served["counters"].get("retransmits", 0)
    assert REQUESTS <= counts(status, "tx.total")["server"] <= REQUESTS + again
    assert counts(status, "rx.total")["client"] > REQUESTS // 2
    probed.kubectl("delete", "latencyprobe", LIVE, "--timeout=20s")
    shop.wait_until_both_nodes_report()


def _probe_of_everything(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyProbe",
        "metadata": {"name": LIVE, "namespace": namespace},
        "spec": {
            "selector": {},
            "interval": "2s",
            "window": "5m",
            "overhead": {"maxCPUPercent": 0},
        },
    }


def _running(status: dict[str, Any]) -> set[str]:
    """The nodes of the listed pods that have not ended."""
    return {pod["node"] for pod in status.get("pods", ()) if not pod.get("ended")}


def _have_the_leader_on(node: str, shop: Shop) -> None:
    """The scheduler spreads the operators' pods, so one of the next leaders is there."""
    for _ in range(5):
        leader = shop.release.leader()
        if leader["spec"]["nodeName"] == node:
            return
        name = leader["metadata"]["name"]
        shop.cluster.kubectl("delete", "pod", name, f"--namespace={NAMESPACE}")
    pytest.fail(f"no operator leads on {node}")


def _ended(status: dict[str, Any]) -> set[str]:
    """The nodes of the listed pods that have ended."""
    return {pod["node"] for pod in status.get("pods", ()) if pod.get("ended")}


def _is_ready(status: dict[str, Any]) -> bool:
    """Whether it measures: a probe without pods is ready, too."""
    return any(
        c["type"] == "Ready" and c["reason"] == "Measuring" for c in status.get("conditions", ())
    )


def test_an_upgrade_changes_what_was_asked_and_keeps_probes_and_certificates(
    shop: Shop, tmp_path: Path
) -> None:
    release = shop.release
    shop.wait_until_both_nodes_report()
    before = shop.cluster.get("latencyprobe", LIVE, f"--namespace={shop.namespace}")
    certificates = {component: release.secret(component) for component in ("agent", "operator")}
    newer = _chart_with_a_newer_crd(tmp_path)

    release.upgrade(
        *("agent.log.level=debug", "operator.log.level=debug"),
        "agent.updateStrategy.rollingUpdate.maxUnavailable=100%",
        chart=newer,
    )

    for pod in (*release.operators().values(), *release.agents().values()):
        assert "--log-level=debug" in pod["spec"]["containers"][0]["args"]
    after = shop.cluster.get("latencyprobe", LIVE, f"--namespace={shop.namespace}")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]
    shop.wait_until_both_nodes_report()
    assert {each: release.secret(each) for each in certificates} == certificates
    explained = shop.cluster.kubectl("explain", "latencyprobe.spec.note")
    assert "What a newer version knows." in explained


def _chart_with_a_newer_crd(folder: Path) -> Path:
    """The chart, as a later version of it may be: its CRD knows one field more."""
    chart = copytree(CHART, folder / "latencyprobe")
    path = chart / "files" / "crd.yaml"
    crd = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["note"] = {"type": "string", "description": "What a newer version knows."}
    path.write_text(yaml.safe_dump(crd))
    return chart


@pytest.fixture
def evictable_shop(shop: Shop) -> Iterator[Shop]:
    """The shop, whose pods may be evicted: they are back after the test."""
    yield shop
    shop.reopen()
    shop.wait_until_both_nodes_report()


def test_a_drained_node_leaves_the_report_and_comes_back(
    evictable_shop: Shop, namespace: str
) -> None:
    shop = evictable_shop
    cluster = shop.cluster
    first, second = cluster.nodes
    deployment = manifests.server_deployment("cart", namespace=namespace, replicas=2)
    deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": "cart"}},
        }
    ]
    _have_the_leader_on(second.name, shop)
    cluster.apply(deployment, _probe_of_everything(namespace))
    probed = Shop(shop.release, namespace)
    both = {"pods": 2, "containers": 2, "nodes": 2, "readyNodes": 2}
    probed.wait(
        "rows of both nodes",
        lambda status: (
            status.get("targets") == both and _running(status) == {first.name, second.name}
        ),
    )

    with cluster.drained(second):
        one = both | {"nodes": 1, "readyNodes": 1}
        status = probed.wait(
            "the other node alone",
            lambda status: (
                status.get("targets") == one
                and _running(status) == {first.name}
                # The evicted pod stays for the window, also if the leader was evicted with it.
                and _ended(status) == {second.name}
            ),
        )
        assert status["phase"] == "Running"
        operators = shop.release.operators().values()
        assert {pod["spec"]["nodeName"] for pod in operators} == {first.name}
        assert set(shop.release.agents()) == {first.name, second.name}

    probed.kubectl("delete", "pods", "--selector=app=cart", "--grace-period=1")
    probed.wait("both nodes again", lambda status: status.get("targets") == both)
    probed.kubectl("delete", "latencyprobe", LIVE, "--timeout=20s")
