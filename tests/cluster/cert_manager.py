"""cert-manager in the cluster: its controller, with the CRDs and the permissions of its own chart.

Its webhook is left out, which the API server would look for behind a Service: the cluster has no
kube-proxy. So is what serves that webhook alone, the cainjector.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import copy

from tests.chart.helm import Helm
from tests.cluster.cert_manager_programs import CERT_MANAGER, write_chart
from tests.cluster.environment import Cluster
from tests.cluster.images import pack_image

NAMESPACE = "cert-manager"
PARTS = ("crd-*.yaml", "rbac.yaml", "serviceaccount.yaml", "deployment.yaml")
SELECTOR = "app.kubernetes.io/component=controller"
IMAGE = "latencyprobe.test/cert-manager"


def install(cluster: Cluster, helm: Helm, controller: Path) -> None:
    """Apply it, and wait until it runs."""
    with tempfile.TemporaryDirectory() as folder:
        cluster.load_image(_image(controller, Path(folder, "root")))
        manifests = _render(helm, Path(folder, "chart"))
    cluster.create_namespace(NAMESPACE)
    cluster.kubectl("apply", "--server-side", "--filename=-", stdin=manifests)
    cluster.wait_for_pods(NAMESPACE, SELECTOR, count=1)


def _image(controller: Path, root: Path) -> bytes:
    root.mkdir()
    copy(controller, root)
    reference = f"{IMAGE}:{CERT_MANAGER.version}"
    # Any user but root, which the chart forbids it to be.
    return pack_image(reference, root, controller.name, user="1000:1000")


def _render(helm: Helm, chart: Path) -> str:
    write_chart(chart)
    parts = [path for pattern in PARTS for path in (chart / "templates").glob(pattern)]
    shown = (f"--show-only=templates/{path.name}" for path in sorted(parts))
    values = f"--set=image.repository={IMAGE}"
    return helm.run(
        "template", "cert-manager", str(chart), f"--namespace={NAMESPACE}", *shown, values
    )
