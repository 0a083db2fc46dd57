"""The operator, with its own permissions, against a real API server and real pods.

The agent is one without a kernel, so that these tests are about pods, statuses and restarts; the
real one is in test_end_to_end.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.client import KubectlError
from devcluster.environment import Cluster
from devcluster.waiting import wait_until
from tests.cluster import manifests
from tests.cluster.operator_process import Process, operator_arguments
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority

AGENT_LABELS = {"app.kubernetes.io/name": "latencyprobe-agent"}
FOLLOW_SECONDS = 2.0
# Of the API server: some intervals of a probe. test_release_2_life.py has a longer one.
ABSENCE_SECONDS = 6


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
            if holds():
                return None
            return f"status {self.status_or_error()}\nagent: {self.told()}\n{self.operator.tail()}"

        wait_until(what, unmet, seconds=seconds, interval_s=0.1)

    def status_or_error(self) -> str:
        """The status, or why there is none."""
        try:
            return json.dumps(self.status())
        except KubectlError as error:
            return str(error)


@pytest.fixture
def site(cluster: Cluster, kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """A running operator and agent, with two pods app=checkout."""
    authority = Authority.make(tmp_path / "pki")
    authority.issue(AGENT_NAME)
    tls = authority.issue(OPERATOR_NAME)
    cluster.apply(manifests.agent_placeholder(AGENT_LABELS))
    cluster.apply(manifests.server_deployment("checkout", namespace=namespace, replicas=2))
    operator = Process(operator_arguments(kubeconfig, tls), tmp_path / "operator.log")
    agent = Process(
        [
            *cluster.node_exec_prefix(),
            sys.executable,
            "-m",
            "tests.cluster.fake_agent_process",
            str(cluster.node_ip),
            str(tmp_path / "pki"),
            str(tmp_path / "state.json"),
        ],
        tmp_path / "agent.log",
    )
    with operator.running(), agent.running():  # they start while the pods do
        cluster.wait_for_pods(namespace, "app=checkout", count=2)
        cluster.wait_for_pods(
            manifests.AGENT_NAMESPACE, "app.kubernetes.io/name=latencyprobe-agent", count=1
        )
        yield Site(cluster, namespace, operator, agent)
        # While the operator is there to take off the finalizers.
        cluster.kubectl("delete", "latencyprobe", "--all", f"--namespace={namespace}")


def test_a_probe_is_measured_and_shown(site: Site) -> None:
    site.apply()

    site.wait("both pods in the status", lambda: len(site.status().get("pods", ())) == 2)
    site.wait("figures", lambda: site.status()["summary"].get("p99") == "10ms")
    header, row = site.kubectl("get", "latencyprobe").splitlines()
    columns = ["NAME", "PODS", "P50", "P99", "BOTTLENECK", "OBJECTIVESMET", "READY", "AGE"]
    assert header.split() == columns
    assert row.split()[:6] == ["checkout", "2", "10ms", "10ms", "SlowReader", "True"]
    status = site.status()
    assert status["phase"] == "Running"
    assert status["targets"] == {"pods": 2, "containers": 2, "nodes": 1, "readyNodes": 1}
    assert site.condition("Covered") == ("True", "FullyCovered")
    probe = site.cluster.get("latencyprobe", "checkout", f"--namespace={site.namespace}")
    assert "annotations" not in probe["metadata"] or all(
        "kopf" not in name for name in probe["metadata"]["annotations"]
    )


def test_pods_are_followed_within_two_seconds(site: Site) -> None:
    site.apply()
    site.wait("targets", lambda: len(site.targets()) == 2)
    for replicas in (3, 1):
        site.kubectl("scale", "deployment/checkout", f"--replicas={replicas}")
        site.wait(f"{replicas} containers", lambda: len(site.containers()) == replicas)  # noqa: B023
        site.wait(
            "the agent told of them",
            lambda: site.targets() == site.containers(),
            seconds=FOLLOW_SECONDS,
        )


def test_a_restarted_container_is_followed(site: Site) -> None:
    site.apply()
    site.wait("targets", lambda: site.targets() == site.containers())
    before = site.containers()
    kill_container(before[0])

    site.wait("another container", lambda: _replaced(before, site.containers()))
    site.wait(
        "the agent told of it",
        lambda: site.targets() == site.containers(),
        seconds=FOLLOW_SECONDS,
    )


def _replaced(before: list[str], now: list[str]) -> bool:
    return len(now) == len(before) and now != before


def kill_container(container_id: str) -> None:
    """Kill its processes, which are in the machine's PID namespace; the kubelet starts it anew."""
    _, _, identifier = container_id.partition("://")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if identifier in (process / "cgroup").read_text():
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_it_waits_for_pods_that_do_not_exist_yet(site: Site) -> None:
    site.apply(selector={"matchLabels": {"app": "later"}})
    site.wait("NoMatchingPods", lambda: site.condition() == ("True", "NoMatchingPods"))
    site.kubectl("label", "pods", "--selector=app=checkout", "app=later", "--overwrite")

    site.wait("targets", lambda: len(site.targets()) == 2, seconds=FOLLOW_SECONDS)
    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))


def test_suspension_edits_and_duration_take_effect(site: Site) -> None:
    site.apply()
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))
    site.patch("checkout", suspend=True)
    site.wait("detached", lambda: not site.targets(), seconds=FOLLOW_SECONDS)
    site.wait("phase Suspended", lambda: site.status()["phase"] == "Suspended", seconds=5)
    assert site.status()["summary"]["p99"] == "10ms"
    site.patch("checkout", suspend=False, duration="1s")
    site.wait("phase Completed", lambda: site.status()["phase"] == "Completed", seconds=100)
    assert site.targets() == []
    site.patch("checkout", duration=None)
    site.wait("phase Running", lambda: site.status()["phase"] == "Running", seconds=100)
    assert len(site.targets()) == 2


def test_two_probes_on_the_same_pods_both_report(site: Site) -> None:
    site.apply("one")
    site.apply("two", selector={}, modules=["rx"])
    for name in ("one", "two"):
        site.wait("figures", lambda: site.status(name).get("summary", {}).get("p99"))  # noqa: B023

    assert site.targets("one") == site.targets("two") != []
    site.kubectl("delete", "latencyprobe", "one")
    site.wait("one detached", lambda: not site.targets("one"), seconds=FOLLOW_SECONDS)
    assert site.targets("two")


def test_an_agent_that_dies_gets_its_state_again_when_it_returns(site: Site) -> None:
    site.apply()
    site.wait("targets", lambda: len(site.targets()) == 2)
    first = site.told()
    site.agent.stop(signal.SIGKILL)
    site.wait("unreachable", lambda: site.condition() == ("False", "AgentUnreachable"), seconds=100)
    (node,) = site.status()["nodes"]
    assert (node["name"], node["state"]) == (site.cluster.node_name, "Unreachable")
    assert site.status()["phase"] == "Degraded"
    site.agent.start()

    site.wait("told again", lambda: site.told()["instance"] != first["instance"])
    assert site.told()["generation"] > first["generation"]
    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))


def test_an_agent_that_stands_still_is_stale_until_it_goes_on(site: Site) -> None:
    site.apply()
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))
    assert site.agent.pid
    os.kill(site.agent.pid, signal.SIGSTOP)
    try:
        # Its connection is there: the operator's pings find it out later than this.
        site.wait("silence", lambda: site.condition() == ("False", "AgentSilent"))
        (node,) = site.status()["nodes"]
    finally:
        os.kill(site.agent.pid, signal.SIGCONT)
    assert (node["name"], node["state"]) == (site.cluster.node_name, "Stale")
    assert re.search("does not report; last report [12]0s ago$", node["message"])

    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))
    assert site.status()["nodes"] == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_operator_goes_on(site: Site, how: signal.Signals) -> None:
    site.apply()
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))
    before, generation = site.status(), site.told()["generation"]
    site.operator.stop(how)
    assert len(site.targets()) == 2
    site.operator.start()

    site.wait("told again", lambda: site.told()["generation"] > generation)
    assert len(site.targets()) == 2
    site.wait("a new report", lambda: site.status()["lastReportTime"] > before["lastReportTime"])
    after = site.status()
    assert (after["phase"], after["startTime"]) == ("Running", before["startTime"])


def test_deletion_waits_for_no_agent_that_is_away(site: Site) -> None:
    site.apply()
    site.wait("targets", lambda: len(site.targets()) == 2)
    site.agent.stop(signal.SIGKILL)
    site.kubectl("delete", "latencyprobe", "checkout", seconds=180)
    with pytest.raises(KubectlError, match="NotFound"):
        site.status()
    site.agent.start()

    site.wait("told of nothing", lambda: site.told()["probes"] == {})


def test_deletion_while_the_operator_is_away_is_caught_up_with(site: Site) -> None:
    site.apply()
    site.wait("targets", lambda: len(site.targets()) == 2)
    site.operator.stop(signal.SIGKILL)
    site.kubectl("delete", "latencyprobe", "checkout", "--wait=false")
    site.operator.start()

    site.wait("detached", lambda: not site.targets())
    site.kubectl("wait", "--for=delete", "latencyprobe/checkout", "--timeout=20s")


def test_the_api_server_may_be_away(site: Site) -> None:
    site.apply()
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))
    before = site.status()
    (pod, *_) = before["pods"]
    with site.cluster.pause_api_server():
        generation = site.told()["generation"]
        time.sleep(ABSENCE_SECONDS)  # the absence itself, not a wait
        assert site.told()["generation"] == generation
        assert len(site.targets()) == 2

    site.wait(
        "the status to catch up",
        lambda: site.status()["lastReportTime"] > before["lastReportTime"],
        seconds=180,
    )
    (caught_up, *_) = site.status()["pods"]
    assert caught_up["stages"][0]["count"] >= pod["stages"][0]["count"]
    site.kubectl("scale", "deployment/checkout", "--replicas=3")
    site.wait("three containers", lambda: len(site.containers()) == 3, seconds=60)
    site.wait("the agent told of them", lambda: site.targets() == site.containers(), seconds=15)
    site.patch("checkout", suspend=True)
    site.wait("edits noticed", lambda: site.status()["phase"] == "Suspended", seconds=15)


def test_a_node_without_an_agent_says_so(site: Site) -> None:
    site.cluster.kubectl(
        "delete", "daemonset", "latencyprobe-agent", f"--namespace={manifests.AGENT_NAMESPACE}"
    )
    site.apply()

    site.wait("NoAgent", lambda: site.condition() == ("False", "NoAgent"), seconds=60)
    (node,) = site.status()["nodes"]
    assert "no agent runs on this node" in node["message"]


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"window": "1s"}, "window 1s is shorter than interval 2s"),
        ({"modules": ["rx", "dns"]}, 'Unsupported value: "dns"'),
        ({"interval": "500ms"}, "interval 500ms is outside of 1s to 10m"),
        ({"interval": "soon"}, "is not a duration: write a number with a unit"),
        ({"filter": {"ports": [70000]}}, "should be less than or equal to 65535"),
        ({"selector": {"matchLabels": {"a b": "c"}}}, "a label's key consists of"),
        (
            {"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}},
            "operator In needs at least one of values",
        ),
        ({"modules": ["rx", "rx"]}, "a module is listed twice"),
    ],
)
def test_a_bad_probe_is_refused_by_the_api_server_with_a_reason(
    cluster: Cluster, namespace: str, spec: dict[str, Any], message: str
) -> None:
    probe = {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyProbe",
        "metadata": {"name": "bad", "namespace": namespace},
        "spec": {"selector": {}, "interval": "2s", "window": "20s", **spec},
    }

    with pytest.raises(KubectlError, match=r".") as caught:
        cluster.apply(probe)
    assert message in str(caught.value)


def test_a_selector_that_the_schema_cannot_judge_is_reported(site: Site) -> None:
    site.apply(selector={"matchLabels": {"k" * 70: "v"}})

    site.wait("InvalidSelector", lambda: site.condition() == ("False", "InvalidSelector"))
    messages = [each["message"] for each in site.status()["conditions"]]
    assert "63" in messages[0]
    site.patch("checkout", selector={"matchLabels": {"k" * 70: None, "app": "checkout"}})
    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))
