"""Pods on both nodes that ask each other, and the probes that measure them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from devcluster.layout import NodeLayout
from devcluster.waiting import wait_until
from tests.cluster import manifests
from tests.cluster.operator_process import MANIFESTS
from tests.cluster.product import all_sent
from tests.cluster.release import Release

SAMPLE = MANIFESTS / "samples" / "latencyprobe.yaml"
LIVE = "live"
# So that what is in a status is at most that old.
LIVE_WINDOW_SECONDS = 5
RATE = 50
# In a status: a server on each node.
EVERYWHERE = {"pods": 2, "containers": 2, "nodes": 2, "readyNodes": 2}

Json = dict[str, Any]


class Shop:
    """A namespace with a server app=checkout on each node, asked from the other all the time.

    The probe LIVE measures all pods of it: what its status tells was measured just now.
    """

    def __init__(self, release: Release, namespace: str) -> None:
        self.release = release
        self.cluster = release.cluster
        self.namespace = namespace

    def open(self) -> None:
        """Servers, clients and the probe."""
        servers = self.add_servers()
        first, second = self.cluster.nodes
        for node, other in ((first, second), (second, first)):
            self.add_client(f"load-{node.number}", node.name, [servers[other.name]])
        probe = yaml.safe_load(SAMPLE.read_text())
        probe["metadata"]["name"] = LIVE
        probe["spec"] |= {
            "selector": {},
            "interval": "1s",
            "window": f"{LIVE_WINDOW_SECONDS}s",
            "overhead": {"maxCPUPercent": 0},
        }
        self.cluster.apply({**probe, "metadata": {"name": LIVE, "namespace": self.namespace}})

    def reopen(self) -> None:
        """The pods anew, where some of them are gone."""
        self.kubectl("delete", "pods", "--all", "--grace-period=1")
        self.open()

    def add_servers(self) -> dict[str, str]:
        """One on each node; their addresses by node."""
        for node in self.cluster.nodes:
            self.cluster.apply(
                manifests.server_pod(
                    f"checkout-{node.number}",
                    namespace=self.namespace,
                    node=node.name,
                    app="checkout",
                )
            )
        pods = self.cluster.wait_for_pods(
            self.namespace, "app=checkout", count=len(self.cluster.nodes)
        )
        return {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in pods}

    def add_client(
        self, name: str, node: str, servers: Sequence[str], *, rate: int = RATE, count: int = 0
    ) -> None:
        """A client on this node; `count`: how many requests, 0 for no end."""
        options = ["--rate", str(rate), *(("--count", str(count)) if count else ())]
        self.cluster.apply(
            manifests.client_pod(
                name, namespace=self.namespace, node=node, servers=servers, options=options
            )
        )
        self.cluster.wait_for_pods(self.namespace, f"app={name}", count=1)

    def exchange(self, probe: str, requests: int) -> Json:
        """Have each node's server answer the other node; the status that has all requests."""
        servers = self.add_servers()
        self.wait("readiness", lambda s: s.get("targets") == EVERYWHERE, probe=probe)
        first, second = self.cluster.nodes
        for node, other in ((first, second), (second, first)):
            name = f"client-{node.number}"
            self.add_client(name, node.name, [servers[other.name]], rate=200, count=requests)
        for node in self.cluster.nodes:
            self.account(f"client-{node.number}", requests=requests)
        sent = {f"checkout-{node.number}": requests for node in self.cluster.nodes}
        return self.wait(
            "every request in the report",
            lambda status: (
                counts(status, "rx.total") == sent and all_sent(status, "tx.total", sent)
            ),
            probe=probe,
        )

    def restart_agent(self, node: NodeLayout) -> None:
        """Kill a node's agent; returns when another process of it measures."""
        before = self.release.agent_restarts(node)
        self.release.kill_agent(node)

        def unmet() -> str | None:
            now = self.release.agent_restarts(node)
            return None if now > before else f"restarted {now} times, as before"

        wait_until(f"the agent of {node.name} to start again", unmet, seconds=120)
        self.wait_until_both_nodes_report()

    def kubectl(self, *arguments: str, seconds: float = 120) -> str:
        """kubectl in the shop's namespace."""
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", seconds=seconds)

    def account(self, client: str, *, requests: int) -> None:
        """Wait until the client says that all its requests were answered."""

        def unmet() -> str | None:
            report = self.cluster.last_report(self.namespace, client)
            answered = [each["responses"] for each in report.get("servers", {}).values()]
            return None if answered == [requests] else f"the client reported {report}"

        wait_until(f"the answers to {client}", unmet, seconds=60)

    def status(self, probe: str = LIVE) -> Json:
        found = self.cluster.get("latencyprobe", probe, f"--namespace={self.namespace}")
        status: Json = found.get("status", {})
        return status

    def wait(
        self,
        what: str,
        holds: Callable[[Json], object],
        *,
        probe: str = LIVE,
        seconds: float = 60,
    ) -> Json:
        """Wait until a probe's status is so; returns it."""
        seen: list[Json] = [{}]

        def unmet() -> str | None:
            seen[0] = self.status(probe)
            if holds(seen[0]):
                return None
            told = {k: v for k, v in seen[0].items() if k != "pods"}
            return f"{json.dumps(told)}\n{counts(seen[0], 'rx.total')}\n{self.release.logs()}"

        wait_until(what, unmet, seconds=seconds)
        return seen[0]

    def wait_until_both_nodes_report(self) -> Json:
        """Both servers are measured just now, and every node is ready."""
        began = datetime.datetime.now(datetime.UTC)
        return self.wait(
            "fresh figures of both nodes",
            lambda status: _both_report(status, since=began),
            seconds=180,  # without news a status is written once a minute
        )


def _both_report(status: Json, *, since: datetime.datetime) -> bool:
    written = datetime.datetime.fromisoformat(status.get("lastReportTime", "1970-01-01T00:00:00Z"))
    return (
        written > since
        and status["targets"]["readyNodes"] == status["targets"]["nodes"] == 2
        and all(counts(status, "rx.total").get(f"checkout-{number}", 0) for number in (1, 2))
    )


def counts(status: Json, stage: str) -> dict[str, int]:
    """The stage's count by pod."""
    return {
        pod["name"]: each["count"]
        for pod in status.get("pods", ())
        for each in pod["stages"]
        if each["name"] == stage
    }


def node_told(status: Json, name: str) -> Json:
    """What the status lists of a node; nothing where that is fully covered."""
    return next((node for node in status.get("nodes", ()) if node["name"] == name), {})
