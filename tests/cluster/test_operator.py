"""The operator, with its own permissions, against a real API server and real pods.

The agent is one without a kernel, so that these tests are about pods, statuses and restarts; the
real one is in test_end_to_end.py.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from devcluster.client import KubectlError
from devcluster.environment import Cluster
from tests.cluster import manifests
from tests.cluster.site import Site
from tests.next_steps import commands

# Ten times what it takes at most.
FOLLOW_SECONDS = 20.0
# Of the API server: some intervals of a probe. test_release_2_life.py has a longer one.
ABSENCE_SECONDS = 6


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


def test_pods_are_followed(site: Site) -> None:
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
    site.wait("phase Suspended", lambda: site.status()["phase"] == "Suspended", seconds=50)
    assert site.status()["summary"]["p99"] == "10ms"
    site.patch("checkout", suspend=False, duration="1s")
    site.wait("phase Completed", lambda: site.status()["phase"] == "Completed", seconds=100)
    assert site.targets() == []
    site.patch("checkout", duration=None)
    site.wait("phase Running", lambda: site.status()["phase"] == "Running", seconds=100)
    assert len(site.targets()) == 2


def test_each_kubectl_command_of_a_next_step_runs(site: Site) -> None:
    lines = [words[1:] for words in commands() if words[0] == "kubectl"]
    assert lines
    for line in lines:
        site.kubectl(*line)


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
    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))
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
    with site.agent.halted():
        # Its connection is there: the operator's pings find it out later than this.
        site.wait("silence", lambda: site.condition() == ("False", "AgentSilent"))
        (node,) = site.status()["nodes"]
    assert (node["name"], node["state"]) == (site.cluster.node_name, "Stale")
    assert re.search("does not report; last report [12]0s ago$", node["message"])

    site.wait("readiness", lambda: site.condition() == ("True", "Measuring"))
    assert site.status()["nodes"] == []


# test_end_to_end.py has one that is asked to end.
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)]
)
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
    site.wait("the agent told of them", lambda: site.targets() == site.containers(), seconds=60)
    site.patch("checkout", suspend=True)
    site.wait("edits noticed", lambda: site.status()["phase"] == "Suspended", seconds=60)


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
