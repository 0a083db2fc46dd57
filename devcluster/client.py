"""The user of a running cluster who may do everything: kubectl, and its output."""

import base64
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.progress import Say

from . import kubeconfig, programs
from .errors import ClusterError
from .layout import Layout
from .programs import Programs

# Variables that would lead our clients past the cluster: to a proxy or to another cluster.
MISLEADING = ("http_proxy", "https_proxy", "all_proxy", "kubeconfig")


class KubectlError(ClusterError):
    """kubectl failed."""

    def __init__(self, arguments: Sequence[str], exit_code: int, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: exit code {exit_code}\n{stderr.strip()}")
        self.arguments = arguments
        self.exit_code = exit_code
        self.stderr = stderr


class Client:
    """A cluster as its users see it, by its API server."""

    def __init__(self, layout: Layout, say: Say) -> None:
        self.layout = layout
        self._say = say

    @cached_property
    def _programs(self) -> Programs:
        return programs.obtain(self._say)

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of a user who may do everything."""
        return self.layout.admin_kubeconfig

    @property
    def kubectl_path(self) -> Path:
        """The path of kubectl."""
        return self._programs.paths["kubectl"]

    def environment(self) -> dict[str, str]:
        """Return the environment of this cluster's clients: kubectl, KUBECONFIG, and no proxy."""
        kept = {k: v for k, v in os.environ.items() if k.lower() not in MISLEADING}
        return {
            **kept,
            "PATH": f"{self.kubectl_path.parent}:{os.environ.get('PATH', os.defpath)}",
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.layout.state_directory / "kubectl-cache"),
        }

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        """Run kubectl as the user who may do everything; return its output."""
        return self._run_kubectl(arguments, stdin, seconds).stdout

    def warnings(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; return the warnings of the API server to a command that succeeded."""
        return self._run_kubectl(arguments, stdin, 120).stderr

    def _run_kubectl(
        self, arguments: Sequence[str], stdin: str | None, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [self._programs["kubectl"], *arguments],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            env=self.environment(),
            timeout=seconds,
            check=False,
        )
        if answer.returncode:
            raise KubectlError(arguments, answer.returncode, answer.stderr)
        return answer

    def get(self, *arguments: str) -> Any:
        """Return the output of `kubectl get ... --output=json`."""
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Return the content of a Secret."""
        data = self.get("secret", name, f"--namespace={namespace}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Apply these manifests."""
        listing = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(listing))

    def last_report(self, namespace: str, pod: str) -> Any:
        """Return the totals that the workload in this pod printed last; {} if it has not yet."""
        printed = self.kubectl("logs", pod, f"--namespace={namespace}", "--tail=1")
        return json.loads(printed) if printed else {}

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig of the ServiceAccount, whose token is valid for a day."""
        token = self.kubectl(
            "create", "token", name, f"--namespace={namespace}", "--duration=24h"
        ).strip()
        path = self.layout.state_directory / f"{namespace}.{name}.kubeconfig"
        kubeconfig.write(
            path,
            url=self.layout.api_url,
            authority=self.layout.certificates_directory / "ca.crt",
            user=kubeconfig.token_user(token),
            namespace=namespace,
        )
        return path
