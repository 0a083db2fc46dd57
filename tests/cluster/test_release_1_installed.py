"""`helm install` on two nodes: the sample reports, and the API server has nothing to object to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cert_manager_programs import current_crd
from devcluster.client import KubectlError
from devcluster.environment import Cluster
from tests.chart.helm import VALUES_FILES, Helm
from tests.cluster.product import all_sent
from tests.cluster.release import AGENT_NAMESPACE, CRD, Release, pod_security_complaints
from tests.cluster.shop import EVERYWHERE, SAMPLE, Shop, counts
from tools.helm.chart import NAMESPACE, RELEASE

REQUESTS = 400


def test_one_of_two_operators_leads_and_an_agent_is_on_each_node(
    release: Release,
) -> None:
    assert set(release.agents()) == {node.name for node in release.cluster.nodes}
    assert release.leader()["metadata"]["name"] in release.operators()


def test_the_sample_counts_what_pods_of_both_nodes_exchange(
    release: Release, namespace: str
) -> None:
    shop = Shop(release, namespace)
    shop.kubectl("apply", f"--filename={SAMPLE}")
    shop.kubectl(
        *("patch", "latencyprobe", "checkout", "--type=merge"),
        '--patch={"spec": {"overhead": {"maxCPUPercent": 0}}}',
    )

    status = shop.exchange("checkout", REQUESTS)

    sent = {f"checkout-{node.number}": REQUESTS for node in shop.cluster.nodes}
    # From the node's eth0 to the pod's, and back.
    for stage in ("rx.host", "rx.stack", "rx.socket", "app.response"):
        assert counts(status, stage) == sent, stage
    for stage in ("tx.stack", "tx.host"):
        assert all_sent(status, stage, sent), stage
    placed = {pod["name"]: pod["node"] for pod in status["pods"]}
    assert placed == {f"checkout-{node.number}": node.name for node in shop.cluster.nodes}
    assert status["targets"] == EVERYWHERE
    for pod in status["pods"]:
        stages = {stage["name"]: stage for stage in pod["stages"]}
        assert stages["rx.total"]["lost"] == stages["rx.total"]["unmatched"] == 0
        assert stages["rx.host"]["p50Ns"] > 0
    row = shop.kubectl("get", "latencyprobes").splitlines()[1].split()
    assert (row[:2], row[-2]) == (["checkout", "2"], "True")
    shop.kubectl("delete", "latencyprobe", "checkout", "--timeout=20s")


def test_the_operators_namespace_takes_nothing_that_is_not_restricted(release: Release) -> None:
    pod = _pod_of(release, "daemonset", f"{RELEASE}-agent", AGENT_NAMESPACE)
    pod["metadata"]["namespace"] = NAMESPACE

    assert {pod["status"]["phase"] for pod in release.operators().values()} == {"Running"}
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted:latest"'):
        _create_dry(release.cluster, pod)


def test_the_agent_needs_this_beyond_baseline_and_no_more(release: Release, namespace: str) -> None:
    release.cluster.kubectl(
        *("label", "namespace", namespace, "pod-security.kubernetes.io/warn=baseline")
    )
    pod = _pod_of(release, "daemonset", f"{RELEASE}-agent", AGENT_NAMESPACE)
    pod["metadata"]["namespace"] = namespace

    apparmor = 'AppArmor profile type to "Unconfined"'
    capabilities = '"BPF", "PERFMON", "SYS_ADMIN", "SYS_PTRACE" in securityContext.capabilities.add'
    assert pod_security_complaints(_create_dry(release.cluster, pod)) == {
        f'forbidden AppArmor profile (container "agent" must not set {apparmor})',
        "host namespaces (hostPID=true)",
        'hostPath volumes (volume "cgroup")',
        f'non-default capabilities (container "agent" must not include {capabilities})',
    }


def _pod_of(release: Release, kind: str, name: str, namespace: str) -> dict[str, Any]:
    """A pod as this workload's template has it."""
    template = release.cluster.get(kind, name, f"--namespace={namespace}")["spec"]["template"]
    spec = {k: v for k, v in template["spec"].items() if k != "serviceAccountName"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tried"},
        "spec": {**spec, "serviceAccount": "default"},
    }


def _create_dry(cluster: Cluster, manifest: dict[str, Any]) -> str:
    """What the API server warns of."""
    return cluster.warnings(
        *("create", "--dry-run=server", "--filename=-"), stdin=json.dumps(manifest)
    )


@pytest.fixture(scope="module")
def foreign_kinds(release: Release) -> Iterator[None]:
    """The CRDs of certificates, and of the Prometheus operator's kinds without a schema."""
    cluster = release.cluster
    names = (
        "certificates.cert-manager.io",
        "podmonitors.monitoring.coreos.com",
        "prometheusrules.monitoring.coreos.com",
    )
    cluster.kubectl("apply", "--filename=-", stdin=current_crd("certificates"))
    cluster.apply(_crd_without_schema("monitoring.coreos.com", "PodMonitor"))
    cluster.apply(_crd_without_schema("monitoring.coreos.com", "PrometheusRule"))
    crds = [f"crd/{name}" for name in names]
    cluster.kubectl("wait", "--for=condition=Established", *crds)
    yield
    cluster.kubectl("delete", *crds)


def _crd_without_schema(group: str, kind: str) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


@pytest.mark.parametrize("values", VALUES_FILES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("foreign_kinds")
def test_the_api_server_takes_what_the_chart_renders(
    release: Release, helm: Helm, values: Path
) -> None:
    rendered = helm.render(f"--values={values}")
    objects = [item for item in yaml.safe_load_all(rendered) if item]
    for namespace in {item["metadata"].get("namespace", "default") for item in objects}:
        _ensure_namespace(release.cluster, namespace)

    # As Helm applies it: what another install says and this one does not, goes.
    taken = release.cluster.kubectl(
        *("apply", "--server-side", "--field-manager=helm", "--force-conflicts"),
        *("--dry-run=server", "--filename=-", "--output=name"),
        stdin=rendered,
    )

    assert len(taken.split()) == len(objects)
    assert CRD.partition("/")[2] in taken


def _ensure_namespace(cluster: Cluster, name: str) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
