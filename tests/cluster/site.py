"""An operator and an agent without a kernel beside a cluster, and a namespace with two pods."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.waiting import NotInTimeError, wait_until
from tests.cluster import manifests
from tests.cluster.operator_process import Process, operator_arguments
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority

AGENT_LABELS = {"app.kubernetes.io/name": "latencyprobe-agent"}


class Site:
    """The operator and an agent beside a cluster, and a namespace to apply probes to."""

    def __init__(self, cluster: Cluster, namespace: str, operator: Process, agent: Process) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.operator = operator
        self.agent = agent
        self.state_file = agent.log.with_name("state.json")

    def apply(self, name: str = "checkout", **spec: Any) -> None:
        """Apply a probe of the pods app=checkout, with an interval of 2 s, but for `spec`."""
        self.cluster.apply(self.probe(name, **spec))

    def probe(self, name: str = "checkout", **spec: Any) -> dict[str, Any]:
        """Its manifest."""
        return {
            "apiVersion": "latencyprobe.io/v1alpha1",
            "kind": "LatencyProbe",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": {"app": "checkout"}},
                "interval": "2s",
                "window": "20s",
                **spec,
            },
        }

    def patch(self, name: str, **spec: Any) -> None:
        """Change a probe's spec."""
        patch = json.dumps({"spec": spec})
        self.kubectl("patch", "latencyprobe", name, "--type=merge", f"--patch={patch}")

    def kubectl(self, *arguments: str, seconds: float = 120) -> str:
        """kubectl in the test's namespace."""
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", seconds=seconds)

    def status(self, name: str = "checkout") -> dict[str, Any]:
        """A probe's status."""
        probe = self.cluster.get("latencyprobe", name, f"--namespace={self.namespace}")
        found: dict[str, Any] = probe.get("status", {})
        return found

    def condition(self, kind: str = "Ready", name: str = "checkout") -> tuple[str, str]:
        """(status, reason) of a condition."""
        for each in self.status(name).get("conditions", ()):
            if each["type"] == kind:
                return each["status"], each["reason"]
        return "", ""

    def told(self) -> dict[str, Any]:
        """What the agent was told last."""
        if not self.state_file.exists():
            return {}
        state: dict[str, Any] = json.loads(self.state_file.read_text())
        return state

    def targets(self, name: str = "checkout") -> list[str]:
        """The container IDs that the agent is to measure for a probe."""
        return sorted(self.told().get("probes", {}).get(f"{self.namespace}/{name}", ()))

    def containers(self) -> list[str]:
        """The IDs of the running containers of app=checkout."""
        pods = self.cluster.get("pods", f"--namespace={self.namespace}", "--selector=app=checkout")
        return sorted(
            status["containerID"]
            for pod in pods["items"]
            for status in pod["status"].get("containerStatuses", ())
            if "running" in status["state"]
        )

    def wait(self, what: str, holds: Callable[[], object], *, seconds: float = 30) -> None:
        """Wait for a fact."""

        def unmet() -> str | None:
            return None if holds() else "it is not so"

        try:
            wait_until(what, unmet, seconds=seconds, interval_s=0.1)
        except NotInTimeError as error:
            told = f"status {self.status_or_error()}\nagent: {self.told()}\n{self.operator.tail()}"
            raise NotInTimeError(what, error.seconds, told) from None

    def status_or_error(self) -> str:
        """The status, or why there is none."""
        try:
            return json.dumps(self.status())
        except KubectlError as error:
            return str(error)


@contextmanager
def running_site(
    cluster: Cluster, kubeconfig: Path, namespace: str, folder: Path
) -> Iterator[Site]:
    """A running operator and agent, with two pods app=checkout."""
    authority = Authority.make(folder / "pki")
    authority.issue(AGENT_NAME)
    tls = authority.issue(OPERATOR_NAME)
    cluster.apply(manifests.agent_placeholder(AGENT_LABELS))
    cluster.apply(manifests.server_deployment("checkout", namespace=namespace, replicas=2))
    operator = Process(operator_arguments(kubeconfig, tls), folder / "operator.log")
    agent = Process(
        [
            *cluster.node_exec_prefix(),
            sys.executable,
            "-m",
            "tests.cluster.fake_agent_process",
            str(cluster.node_ip),
            str(folder / "pki"),
            str(folder / "state.json"),
        ],
        folder / "agent.log",
    )
    with operator.running(), agent.running():  # they start while the pods do
        cluster.wait_for_pods(namespace, "app=checkout", count=2)
        cluster.wait_for_pods(
            manifests.AGENT_NAMESPACE, "app.kubernetes.io/name=latencyprobe-agent", count=1
        )
        yield Site(cluster, namespace, operator, agent)
        # While the operator is there to take off the finalizers.
        cluster.kubectl("delete", "latencyprobe", "--all", f"--namespace={namespace}")
