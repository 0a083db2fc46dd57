"""cert-manager in the cluster: its programs, installed by its own chart."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import copy
from typing import Any

from devcluster.cert_manager_programs import CERT_MANAGER, write_chart
from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.images import pack_image
from devcluster.waiting import wait_until
from tests.chart.helm import Helm

NAMESPACE = "cert-manager"
RELEASE = "cert-manager"
WEBHOOK = "app.kubernetes.io/component=webhook"
# What its chart calls their images in its values; `controller` has no name there.
IMAGE_VALUES = {
    "controller": "image",
    "webhook": "webhook.image",
    "cainjector": "cainjector.image",
}


def install(cluster: Cluster, helm: Helm, programs: Mapping[str, Path]) -> None:
    """Install it, and wait until its webhook answers the API server."""
    with tempfile.TemporaryDirectory() as folder:
        for name, program in programs.items():
            cluster.load_image(_image(name, program))
        chart = Path(folder, "chart")
        write_chart(chart)
        images = (f"--set={value}.repository={_image_name(n)}" for n, value in IMAGE_VALUES.items())
        helm.run(
            *("install", RELEASE, str(chart), *_place(cluster), "--create-namespace"),
            *("--set=startupapicheck.enabled=false", *images, "--wait", "--timeout=120s"),
        )
    _lead_to_the_webhook(cluster)


def uninstall(cluster: Cluster, helm: Helm) -> None:
    """Remove it, and with its CRDs all certificates and issuers."""
    helm.run("uninstall", RELEASE, *_place(cluster))


def apply(cluster: Cluster, manifests: str) -> None:
    """Apply objects that cert-manager's webhook has to agree to, once it can be asked."""

    def unmet() -> str | None:
        try:
            cluster.kubectl("apply", "--filename=-", stdin=manifests)
        except KubectlError as error:
            if "failed calling webhook" in error.stderr:
                return error.stderr
            raise
        return None

    wait_until("cert-manager's webhook", unmet, seconds=60)


def _place(cluster: Cluster) -> tuple[str, str]:
    return f"--namespace={NAMESPACE}", f"--kubeconfig={cluster.kubeconfig}"


def _image_name(program: str) -> str:
    return f"latencyprobe.test/cert-manager-{program}"


def _image(name: str, program: Path) -> bytes:
    with tempfile.TemporaryDirectory() as root:
        copy(program, root)
        reference = f"{_image_name(name)}:{CERT_MANAGER.version}"
        # Any user but root, which the chart forbids it to be.
        return pack_image(reference, Path(root), program.name, user="1000:1000")


def _lead_to_the_webhook(cluster: Cluster) -> None:
    """The API server asks it at a Service, which takes a kube-proxy or, for one pod, a rule."""
    service: dict[str, Any] = cluster.get(
        "service", f"{RELEASE}-webhook", f"--namespace={NAMESPACE}"
    )
    (pod,) = cluster.wait_for_pods(NAMESPACE, WEBHOOK, count=1)
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (port,) = service["spec"]["ports"]
    address = f"{pod['status']['podIP']}:{ports[port['targetPort']]}"
    rules = f"""
        table ip {RELEASE} {{
            chain output {{
                type nat hook output priority -100
                ip daddr {service["spec"]["clusterIP"]} tcp dport {port["port"]} dnat to {address}
            }}
        }}
    """
    subprocess.run(
        [*cluster.node_exec_prefix(), "nft", "-f", "-"], input=rules, text=True, check=True
    )
