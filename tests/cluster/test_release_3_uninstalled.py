"""`helm uninstall` leaves the probes that people wrote, and nothing that would be in their way."""

from __future__ import annotations

from tests.cluster.release import CRD, secrets_of, wait_until_unloaded
from tests.cluster.shop import LIVE, Shop


def test_an_uninstall_leaves_probes_that_can_be_deleted_and_nothing_else(
    shop: Shop, secrets_before: set[tuple[str, str]]
) -> None:
    release = shop.release
    cluster = shop.cluster
    shop.wait_until_both_nodes_report()
    attached = release.program_ids()
    assert attached

    release.uninstall()

    wait_until_unloaded(attached)
    assert secrets_of(cluster) == secrets_before
    assert cluster.get(CRD)["spec"]["group"] == "latencyprobe.io"
    probe = cluster.get("latencyprobe", LIVE, f"--namespace={shop.namespace}")
    assert "finalizers" not in probe["metadata"]
    shop.kubectl("delete", "latencyprobe", "--all", "--timeout=20s")
    left = ("deployments", "daemonsets", "jobs", "clusterroles", "clusterrolebindings")
    selector = "--selector=app.kubernetes.io/part-of=latencyprobe"
    assert cluster.get(",".join(left), "--all-namespaces", selector)["items"] == []
