"""The product as its users install it: the chart, by Helm, with the images of this checkout."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import cgroups
from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.layout import NodeLayout
from devcluster.waiting import wait_until
from tests.chart.helm import Helm
from tests.cluster.operator_process import MANIFESTS
from tests.live.leftovers import held_program_ids
from tools.helm.chart import CHART, NAMESPACE, RELEASE

AGENT_NAMESPACE = "latencyprobe-agents"
NAMESPACES = {"operator": NAMESPACE, "agent": AGENT_NAMESPACE}
AGENT_PORT = 9345
# Counts are compared exactly: no budget lowers the sampling, however busy the machine is.
EVERY_PACKET = "agent.maxCPUPercent=10000"
AGENTS = "app.kubernetes.io/name=latencyprobe-agent"
OPERATOR = "app.kubernetes.io/name=latencyprobe-operator"
OPERATORS = 2
LEASE = f"{RELEASE}-operator"
CRD = "crd/latencyprobes.latencyprobe.io"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"

Json = dict[str, Any]
Secrets = set[tuple[str, str]]


@dataclass
class Release:
    """One release of the chart in a cluster, whose operator's namespace is held to `restricted`."""

    cluster: Cluster
    helm: Helm

    def make_room(self) -> None:
        """Remove what was applied without Helm, which takes over nothing that it did not make."""
        for manifest in ("rbac.yaml", "crd.yaml"):
            self.cluster.kubectl(
                *("delete", "--ignore-not-found", f"--filename={MANIFESTS / manifest}")
            )
        self.cluster.kubectl("create", "namespace", NAMESPACE)
        self.cluster.kubectl("label", "namespace", NAMESPACE, RESTRICTED)

    def install(self, *settings: str) -> str:
        """What Helm tells then."""
        return self._helm(
            *("install", RELEASE, str(CHART), "--wait", "--timeout=120s"),
            *(f"--set={setting}" for setting in (EVERY_PACKET, *settings)),
        )

    def upgrade(self, *settings: str, chart: Path = CHART) -> str:
        """With these settings beside those of before. Agents are replaced at once, not in turn."""
        return self._helm(
            *("upgrade", RELEASE, str(chart), "--reuse-values", "--wait", "--timeout=120s"),
            *(f"--set={setting}" for setting in settings),
        )

    def uninstall(self) -> str:
        """What Helm tells then, once the agents' namespace is gone, too."""
        told = self._helm("uninstall", RELEASE, "--wait", "--timeout=120s")
        wait_until("the agents' namespace to be gone", self._unmet_namespace_gone, seconds=60)
        return told

    def _unmet_namespace_gone(self) -> str | None:
        try:
            self.cluster.get("namespace", AGENT_NAMESPACE)
        except KubectlError as error:
            return None if "NotFound" in error.stderr else error.stderr
        return f"{AGENT_NAMESPACE} is there"

    @property
    def is_installed(self) -> bool:
        return RELEASE in self._helm("list", "--short").split()

    def agents(self) -> dict[str, Json]:
        """The ready agents' pods by node, once there is one on each."""
        count = len(self.cluster.nodes)
        pods = self.cluster.wait_for_pods(AGENT_NAMESPACE, AGENTS, count=count)
        return {pod["spec"]["nodeName"]: pod for pod in pods}

    def operators(self) -> dict[str, Json]:
        """The ready operators' pods by name."""
        pods = self.cluster.wait_for_pods(NAMESPACE, OPERATOR, count=OPERATORS)
        return {pod["metadata"]["name"]: pod for pod in pods}

    def holder(self) -> str:
        """The identity that the Lease names: of one process."""
        lease = self.cluster.get("lease", LEASE, f"--namespace={NAMESPACE}")
        holder: str = lease["spec"].get("holderIdentity", "")
        return holder

    def leader(self) -> Json:
        """The pod of the operator that leads."""
        operators = self.operators()
        holders: list[str] = []

        def unmet() -> str | None:
            holders.append(self.holder())
            return None if pod_of(holders[-1]) in operators else f"{holders[-1]!r} holds the Lease"

        wait_until("an operator to lead", unmet, seconds=200)
        return operators[pod_of(holders[-1])]

    def restarts(self) -> dict[str, int]:
        """How often the containers of operator and agents were restarted, by pod."""
        pods = (*self.operators().values(), *self.agents().values())
        return {
            pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
            for pod in pods
        }

    def agent_restarts(self, node: NodeLayout) -> int:
        """How often the agent's container on this node was started again."""
        statuses = self.agents()[node.name]["status"].get("containerStatuses") or [{}]
        return int(statuses[0].get("restartCount", 0))

    def agent_pids(self, node: NodeLayout) -> list[int]:
        """The processes of the agent's container, as this machine numbers them."""
        return self.pids_of(self.agents()[node.name])

    def pids_of(self, pod: Json) -> list[int]:
        """The processes of a pod's container, as this machine numbers them."""
        (node,) = (each for each in self.cluster.nodes if each.name == pod["spec"]["nodeName"])
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix(
            "containerd://"
        )
        kubepods = cgroups.unified_hierarchy() / node.kubepods_cgroup
        (directory,) = kubepods.rglob(container)
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]

    def kill_agent(self, node: NodeLayout) -> None:
        """Ends its processes; starting them again is the kubelet's business."""
        for pid in self.agent_pids(node):
            os.kill(pid, signal.SIGKILL)

    def program_ids(self) -> set[int]:
        """The eBPF programs that the agents hold."""
        pids = [pid for node in self.cluster.nodes for pid in self.agent_pids(node)]
        return {program for pid in pids for program in held_program_ids(pid)}

    def secret(self, component: str) -> dict[str, bytes]:
        """The certificate of "agent" or "operator"."""
        return self.cluster.secret(NAMESPACES[component], f"{RELEASE}-{component}-tls")

    def logs(self) -> str:
        """The end of what the operator and the agents have logged."""
        texts = []
        for namespace, selector in ((NAMESPACE, OPERATOR), (AGENT_NAMESPACE, AGENTS)):
            where = (f"--namespace={namespace}", f"--selector={selector}")
            try:
                texts.append(self.cluster.kubectl("logs", *where, "--prefix", "--tail=15"))
            except KubectlError as error:
                texts.append(str(error))
        return "\n".join(texts)

    def _helm(self, *arguments: str) -> str:
        kubeconfig = f"--kubeconfig={self.cluster.kubeconfig}"
        return self.helm.run(*arguments, f"--namespace={NAMESPACE}", kubeconfig)


def pod_of(holder: str) -> str:
    """The pod that an identity in the Lease names."""
    return holder.rpartition("_")[0]


def secrets_of(cluster: Cluster) -> Secrets:
    """(namespace, name) of every Secret."""
    found = cluster.get("secrets", "--all-namespaces")["items"]
    return {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found}


def wait_until_unloaded(programs: set[int]) -> None:
    """Wait until the kernel has freed these programs, which it does in its own time."""

    def unmet() -> str | None:
        listing = subprocess.run(
            ["bpftool", "prog", "show", "-j"], check=True, capture_output=True, text=True
        )
        left = programs & {program["id"] for program in json.loads(listing.stdout or "[]")}
        return f"programs {sorted(left)} are still loaded" if left else None

    wait_until("all programs to be gone", unmet, seconds=180)


def pod_security_complaints(warning: str) -> set[str]:
    """What a pod violates, from the API server's warning `would violate PodSecurity "…": …`."""
    (listed,) = re.findall(r'would violate PodSecurity "[^"]+": (.*)', warning)
    # Between the items, not inside of an item's parentheses.
    return set(re.split(r", (?![^(]*\))", listed))
