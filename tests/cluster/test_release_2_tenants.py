"""Whoever may write in one namespace measures the pods of that namespace, and of no other.

The user is one to whom an administrator gave the role `edit` in a namespace, which the chart's
roles are aggregated to. Next door are pods with the same labels on the same node, that exchange
requests all the time: if they were measured, they would be in a status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests
from tests.cluster.release import Release

OWN = {"own"}
NOBODY: set[str] = set()
USER = "developer"
LABELS = {"matchLabels": {"app": "checkout"}}


@dataclass
class Tenant:
    """A user of one namespace, and the namespace next door."""

    cluster: Cluster
    namespace: str
    victim: str
    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """As the user."""
        return self.cluster.kubectl(*arguments, f"--kubeconfig={self.kubeconfig}", stdin=stdin)

    def apply(
        self, name: str, spec: Mapping[str, Any], *, namespace: str = "", validate: bool = True
    ) -> None:
        """Apply a probe as the user."""
        probe = {
            "apiVersion": "latencyprobe.io/v1alpha1",
            "kind": "LatencyProbe",
            "metadata": {"name": name, "namespace": namespace or self.namespace},
            "spec": {"interval": "1s", "window": "5s", **spec},
        }
        self.kubectl(
            *("apply", "--filename=-", f"--validate={str(validate).lower()}"),
            stdin=json.dumps(probe),
        )

    def status(self, name: str) -> dict[str, Any]:
        probe = self.cluster.get("latencyprobe", name, f"--namespace={self.namespace}")
        status: dict[str, Any] = probe.get("status", {})
        return status


@pytest.fixture(scope="module")
def tenant(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """A user, with a pod that is asked, and the same next door."""
    cluster = release.cluster
    node = cluster.nodes[0].name
    own, victim = (f"{name}-{uuid4().hex[:8]}" for name in ("tenant", "victim"))
    for namespace, name in ((own, "own"), (victim, "treasure")):
        cluster.create_namespace(namespace)
        pod = manifests.server_pod(name, namespace=namespace, node=node, app="checkout")
        cluster.apply(pod)
        (server,) = cluster.wait_for_pods(namespace, "app=checkout", count=1)
        client = manifests.client_pod(
            "client",
            namespace=namespace,
            servers=[server["status"]["podIP"]],
            options=["--rate", "50"],
        )
        cluster.apply(client)
    for namespace in (own, victim):
        cluster.wait_for_pods(namespace, "app=client", count=1)
    cluster.kubectl("create", "serviceaccount", USER, f"--namespace={own}")
    cluster.kubectl(
        *("create", "rolebinding", USER, "--clusterrole=edit"),
        *(f"--serviceaccount={own}:{USER}", f"--namespace={own}"),
    )
    yield Tenant(cluster, own, victim, cluster.service_account_kubeconfig(own, USER))
    cluster.kubectl("delete", "latencyprobes", "--all", f"--namespace={own}", "--timeout=60s")
    for namespace in (own, victim):
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


# Each names what the user would like to reach, and what is measured instead.
TAKEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "everything": ({"selector": {}}, OWN | {"client"}),
    "labels-of-both": ({"selector": LABELS}, OWN),
    "namespace-as-label": (
        {"selector": {"matchLabels": {"kubernetes.io/metadata.name": "VICTIM"}}},
        NOBODY,
    ),
    "metadata-as-label": ({"selector": {"matchLabels": {"metadata.namespace": "VICTIM"}}}, NOBODY),
    "exists": (
        {"selector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}},
        OWN | {"client"},
    ),
    "not-in": (
        {
            "selector": {
                "matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["client"]}]
            }
        },
        OWN,
    ),
    "containers": ({"selector": {}, "containers": ["server"]}, OWN),
    "modules": ({"selector": LABELS, "modules": ["rx", "tx", "tcp", "irq", "sched"]}, OWN),
    "filter": ({"selector": LABELS, "filter": {"ports": [7000], "protocols": ["TCP"]}}, OWN),
    "report": ({"selector": LABELS, "report": {"maxPods": 100}}, OWN),
    "objectives": (
        {
            "selector": LABELS,
            "objectives": [
                {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "1s"}
            ],
        },
        OWN,
    ),
    "overhead": ({"selector": LABELS, "overhead": {"maxCPUPercent": 0}}, OWN),
    "duration": ({"selector": LABELS, "duration": "10m"}, OWN),
}


def test_a_probe_measures_pods_of_its_namespace_alone(tenant: Tenant) -> None:
    for name, (spec, _) in TAKEN.items():
        tenant.apply(name, json.loads(json.dumps(spec).replace("VICTIM", tenant.victim)))

    for name, (_, expected) in TAKEN.items():

        def unmet(name: str = name, expected: set[str] = expected) -> str | None:
            status = tenant.status(name)
            if not expected:
                reasons = [each["reason"] for each in status.get("conditions", ())]
                return None if "NoMatchingPods" in reasons else json.dumps(status)
            measured = {
                pod["name"]
                for pod in status.get("pods", ())
                if any(stage["count"] for stage in pod["stages"])
            }
            return None if measured == expected else f"{name}: {json.dumps(status)[:2000]}"

        wait_until(f"{name}: figures of {expected or 'nobody'}", unmet, seconds=60)
        status = tenant.status(name)
        assert status["targets"]["containers"] == len(expected)
        assert "treasure" not in json.dumps(status)
        assert tenant.victim not in json.dumps(status)
        assert "nodeContext" not in status


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"selector": {**LABELS, "namespaceSelector": {}}}, "unknown field"),
        ({"selector": {}, "namespace": "VICTIM"}, "unknown field"),
        ({"selector": {}, "namespaces": ["VICTIM"]}, "unknown field"),
        ({"selector": {"matchLabels": {"app": "x,app=checkout"}}}, "matchLabels"),
        ({"selector": {"matchLabels": {"app": "x&namespace=VICTIM"}}}, "matchLabels"),
        ({"selector": {"matchLabels": {"app": "x%2Capp=checkout"}}}, "matchLabels"),
        (
            {"selector": {"matchExpressions": [{"key": "a,b=c", "operator": "Exists"}]}},
            "matchExpressions",
        ),
        (
            {
                "selector": {
                    "matchExpressions": [
                        {"key": "app", "operator": "In", "values": ["a),b notin (c"]}
                    ]
                }
            },
            "matchExpressions",
        ),
        (
            {"selector": {"matchExpressions": [{"key": "app", "operator": "in (x),app"}]}},
            "matchExpressions",
        ),
        ({"selector": {}, "containers": ["../../treasure"]}, "containers"),
        ({"selector": {}, "containers": ["/sys/fs/cgroup"]}, "containers"),
    ],
)
def test_text_that_is_more_than_a_label_or_a_name_is_refused(
    tenant: Tenant, spec: dict[str, Any], told: str
) -> None:
    words = json.loads(json.dumps(spec).replace("VICTIM", tenant.victim))

    with pytest.raises(KubectlError, match=told):
        tenant.apply("refused", words)


def test_unknown_fields_are_dropped_without_validation(tenant: Tenant) -> None:
    spec = {"selector": {**LABELS, "namespaceSelector": {}}, "namespaces": [tenant.victim]}
    tenant.apply("unvalidated", spec, validate=False)

    probe = tenant.cluster.get("latencyprobe", "unvalidated", f"--namespace={tenant.namespace}")
    assert probe["spec"]["selector"] == LABELS
    assert "namespaces" not in probe["spec"]


def test_the_user_neither_writes_nor_reads_probes_of_other_namespaces(tenant: Tenant) -> None:
    with pytest.raises(KubectlError, match="forbidden"):
        tenant.apply("there", {"selector": {}}, namespace=tenant.victim)
    with pytest.raises(KubectlError, match="forbidden"):
        tenant.kubectl("get", "latencyprobes", f"--namespace={tenant.victim}")
    with pytest.raises(KubectlError, match="forbidden"):
        tenant.kubectl("get", "latencyprobes", "--all-namespaces")


@pytest.mark.parametrize("resource", ["latencyprobe/mine", "pod/own"])
def test_the_user_writes_no_status(tenant: Tenant, resource: str) -> None:
    """Of a pod it names the containers that are measured, of a probe what was."""
    tenant.apply("mine", {"selector": {}, "suspend": True})
    patch = '{"status": {"phase": "Running"}}'
    with pytest.raises(KubectlError, match="forbidden"):
        tenant.kubectl(
            *("patch", resource, "--subresource=status", "--type=merge", f"--patch={patch}"),
            f"--namespace={tenant.namespace}",
        )


def test_the_user_chooses_no_pods_uid(tenant: Tenant) -> None:
    """By it, with the container's ID, an agent finds what is to be measured."""
    treasure = tenant.cluster.get("pod", "treasure", f"--namespace={tenant.victim}")
    uid = treasure["metadata"]["uid"]
    pod = manifests.client_pod("impostor", namespace=tenant.namespace, servers=[])
    pod["metadata"]["uid"] = uid

    tenant.kubectl("create", "--filename=-", stdin=json.dumps(pod))

    made = tenant.cluster.get("pod", "impostor", f"--namespace={tenant.namespace}")
    assert made["metadata"]["uid"] != uid
