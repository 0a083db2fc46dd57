"""Operator and agent beside the cluster, and the status of their probes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tests.cluster import manifests
from tests.cluster.operator_process import (
    OPERATOR_NAMESPACE,
    ROOT,
    Process,
    operator_arguments,
)

PROGRAM = str(Path(sys.executable).with_name("latencyprobe"))
AGENT_PORT = 9345
INTERVAL_SECONDS = 2
SAMPLE = ROOT / "manifests" / "samples" / "latencyprobe.yaml"


@dataclass
class Product:
    """Operator and agent beside the cluster."""

    cluster: Cluster
    namespace: str
    agent: Process
    operator: Process

    def apply_sample(self, name: str = "checkout", **spec: Any) -> None:
        """Apply the sample probe, with these fields of its spec set."""
        probe = yaml.safe_load(SAMPLE.read_text())
        probe["metadata"] |= {"name": name, "namespace": self.namespace}
        probe["spec"] |= {"interval": f"{INTERVAL_SECONDS}s"} | spec
        self.cluster.apply(probe)

    def status(self, name: str = "checkout") -> dict[str, Any]:
        probe = self.cluster.get("latencyprobe", name, f"--namespace={self.namespace}")
        status: dict[str, Any] = probe.get("status", {})
        return status

    def wait_for_status(
        self, what: str, holds: Callable[[dict[str, Any]], bool], *, seconds: float = 180
    ) -> dict[str, Any]:
        """Wait until the status is so; returns it."""
        seen: list[dict[str, Any]] = [{}]

        def unmet() -> str | None:
            seen[0] = self.status()
            return None if holds(seen[0]) else f"{json.dumps(seen[0])}\n{self.logs()}"

        wait_until(what, unmet, seconds=seconds)
        return seen[0]

    def states_applied(self) -> int:
        """The number of desired states that the agent has put in force."""
        return self.agent.log.read_text(errors="replace").count(" in force: ")

    def logs(self) -> str:
        return f"agent:\n{self.agent.tail()}\noperator:\n{self.operator.tail()}"


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})


def is_ready(status: dict[str, Any]) -> bool:
    """Whether it measures: a probe without pods is ready, too."""
    return bool(condition(status, "Ready").get("reason") == "Measuring")


def stage(pod: dict[str, Any], name: str) -> dict[str, Any]:
    return next((s for s in pod["stages"] if s["name"] == name), {})


def counts(status: dict[str, Any], name: str) -> dict[str, int]:
    """The stage's count by pod."""
    return {pod["name"]: stage(pod, name).get("count", 0) for pod in status.get("pods", [])}


def all_sent(status: dict[str, Any], name: str, sent: dict[str, int]) -> bool:
    """Whether each pod sent as many by a stage's count. After a halt, TCP sends some again."""
    again = {pod["name"]: pod["counters"].get("retransmits", 0) for pod in status.get("pods", ())}
    found = counts(status, name)
    return found.keys() == sent.keys() and all(
        sent[pod] <= found[pod] <= sent[pod] + again[pod] for pod in sent
    )


def make_certificates(folder: Path) -> Path:
    """Certificates of one installation, in a new folder."""
    subprocess.run([PROGRAM, "pki", "init", str(folder)], check=True)
    return folder


@contextmanager
def running_product(
    cluster: Cluster, kubeconfig: Path, namespace: str, certificates: Path, logs: Path
) -> Iterator[Product]:
    """Operator and agent, until the end of the context."""
    labels = {"app.kubernetes.io/name": "latencyprobe-agent"}
    cluster.apply(manifests.agent_placeholder(labels))
    agent = Process(
        [
            *cluster.node_exec_prefix(),
            *(PROGRAM, "agent", f"--listen={cluster.node_ip}:{AGENT_PORT}"),
            f"--node-name={cluster.node_name}",
            "--host-netns=/proc/self/ns/net",
            "--max-cpu-percent=10000",  # every packet is counted
            f"--ca-file={certificates / 'client-ca.crt'}",
            f"--cert-file={certificates / 'agent.crt'}",
            f"--key-file={certificates / 'agent.key'}",
        ],
        logs / "agent.log",
    )
    tls = ClientTlsFiles(
        certificates / "server-ca.crt", certificates / "operator.crt", certificates / "operator.key"
    )
    operator = Process(operator_arguments(kubeconfig, tls), logs / "operator.log")
    with agent.running(), operator.running():
        cluster.wait_for_pods(
            OPERATOR_NAMESPACE, "app.kubernetes.io/name=latencyprobe-agent", count=1
        )
        made = Product(cluster, namespace, agent, operator)
        yield made
        cluster.kubectl(
            *("delete", "latencyprobes", "--all", f"--namespace={namespace}", "--timeout=30s")
        )
