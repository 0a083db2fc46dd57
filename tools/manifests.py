"""The files of the repository that are rendered from the chart.

`make manifests` writes them; tests/chart/test_documents.py holds them equal to the chart.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools.helm.chart import CHART, ROOT, HelmProgram
from tools.helm.programs import obtain_helm, obtain_helm_docs
from tools.progress import say_on_stderr

_MADE = "# Rendered from charts/latencyprobe by `make manifests`.\n"
_NAMESPACE = """\
---
apiVersion: v1
kind: Namespace
metadata:
  name: latencyprobe-system
  labels:
    app.kubernetes.io/part-of: latencyprobe
"""
_INSTALL = (
    _MADE
    + """\
# Operator, agents and CRD for `kubectl apply --server-side -f`. The pods then wait for their
# certificates, which this command makes.
#
#     latencyprobe pki secrets | kubectl apply --server-side -f -
#
# To remove everything: `kubectl delete latencyprobes --all --all-namespaces`. Afterwards
# `kubectl delete -f` this file.
"""
    + _NAMESPACE
    + "    pod-security.kubernetes.io/enforce: restricted\n"
)
_RBAC = _MADE + "# Permissions of the operator, if it runs outside of the cluster.\n" + _NAMESPACE


def rendered(helm: Path, helm_docs: Path) -> Mapping[Path, str]:
    """Return the content of each file."""
    chart = HelmProgram(helm)
    return {
        ROOT / "manifests/install.yaml": _INSTALL
        + chart.render("--no-hooks", f"--values={CHART}/ci/existing-secrets-values.yaml"),
        ROOT / "manifests/rbac.yaml": _RBAC
        + chart.render(
            "--show-only=templates/operator/serviceaccount.yaml",
            "--show-only=templates/operator/rbac.yaml",
        ),
        CHART / "README.md": _readme(helm_docs),
    }


def _readme(helm_docs: Path) -> str:
    answer = subprocess.run(
        [
            helm_docs,
            f"--chart-search-root={CHART}",
            "--sort-values-order=file",
            "--dry-run",
            "--log-level=warning",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.rstrip("\n") + "\n"


def main() -> None:
    """Write all files."""
    for path, text in rendered(obtain_helm(say_on_stderr), obtain_helm_docs(say_on_stderr)).items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
