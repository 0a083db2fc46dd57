"""A LatencyProbe behaves as Helm, GitOps tools and kubectl expect of an object."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from devcluster.client import KubectlError
from devcluster.environment import Cluster
from tests.chart.helm import Helm
from tests.cluster.site import Site
from tools.helm.chart import HelmError

RELEASE = "probes"
LATER = {"selector": {"matchLabels": {"app": "later"}}}


class Chart:
    """A release of probes."""

    def __init__(self, site: Site, helm: Helm, folder: Path) -> None:
        self._site = site
        self._helm = helm
        self._templates = folder / "templates"
        self._templates.mkdir(parents=True)
        (folder / "Chart.yaml").write_text("{apiVersion: v2, name: probes, version: 0.1.0}")
        self._folder = folder

    def add(self, name: str, **spec: Any) -> None:
        """One more probe."""
        probe = self._site.probe(name, **spec)
        (self._templates / f"{name}.yaml").write_text(json.dumps(probe))

    def upgrade(self, *, seconds: int = 120) -> str:
        """Install or upgrade the release, and wait for it."""
        return self._helm.run(
            *("upgrade", "--install", RELEASE, str(self._folder), "--wait"),
            f"--timeout={seconds}s",
            f"--namespace={self._site.namespace}",
            f"--kubeconfig={self._site.cluster.kubeconfig}",
        )


@pytest.fixture
def chart(site: Site, helm: Helm, tmp_path: Path) -> Chart:
    """A chart without a probe."""
    return Chart(site, helm, tmp_path / "probes")


def phases(site: Site) -> dict[str, str]:
    """The phase of each probe."""
    probes = site.cluster.get("latencyprobes", f"--namespace={site.namespace}")
    return {each["metadata"]["name"]: each["status"].get("phase", "") for each in probes["items"]}


def test_helm_waits_for_no_probe_that_is_suspended_completed_or_without_pods(
    site: Site, chart: Chart
) -> None:
    chart.add("asleep", suspend=True)
    chart.add("later", **LATER)
    chart.add("short", duration="1s")
    chart.add("checkout")
    chart.upgrade()

    assert phases(site)["asleep"] == "Suspended"
    assert phases(site)["later"] == "Pending"
    assert phases(site)["checkout"] in ("Running", "Degraded")
    site.kubectl("wait", "--for=condition=Complete", "latencyprobe/short", "--timeout=100s")
    chart.add("short", duration="1s", report={"maxPods": 5})
    chart.upgrade()
    assert phases(site)["short"] == "Completed"
    assert site.condition("Ready", "short") == ("True", "Completed")


def test_helm_waits_for_the_operator_to_see_a_probe(site: Site, chart: Chart) -> None:
    site.operator.stop(signal.SIGTERM)
    chart.add("later", **LATER)
    with pytest.raises(HelmError, match=r"later not ready\. status: InProgress"):
        chart.upgrade(seconds=5)
    assert site.status("later") == {"observedGeneration": -1}

    site.operator.start()
    chart.upgrade()
    assert site.condition("Ready", "later") == ("True", "NoMatchingPods")


def test_helm_gives_up_a_probe_that_cannot_measure(site: Site, chart: Chart) -> None:
    chart.add("impossible", selector={"matchLabels": {"k" * 70: "v"}})
    with pytest.raises(HelmError, match=r"impossible not ready\. status: Failed") as caught:
        chart.upgrade(seconds=300)

    assert "deadline" not in str(caught.value), "it did not wait for its time-out"
    assert site.condition("Stalled", "impossible") == ("True", "InvalidSelector")


# ------------------------------------------------------------------------------ time to live


def exists(site: Site, name: str = "checkout") -> bool:
    """Whether there is such a probe."""
    found = site.kubectl("get", "latencyprobe", name, "--output=name", "--ignore-not-found")
    return bool(found)


def test_a_completed_probe_is_deleted_and_its_agents_are_free(site: Site) -> None:
    site.apply(duration="1s", ttlSecondsAfterFinished=0)

    site.wait("its deletion", lambda: not exists(site), seconds=100)
    site.wait("agents that measure nothing for it", lambda: site.targets() == [], seconds=100)
    site.wait("its reason", lambda: "ttlSecondsAfterFinished is 0" in site.operator.log.read_text())


def test_a_restarted_operator_still_deletes_and_an_edit_prevents_it(site: Site) -> None:
    site.apply("gone", duration="1s", ttlSecondsAfterFinished=3600)
    site.apply("kept", duration="1s", ttlSecondsAfterFinished=3600)
    for name in ("gone", "kept"):
        site.kubectl("wait", "--for=condition=Complete", f"latencyprobe/{name}", "--timeout=100s")
    site.operator.stop(signal.SIGKILL)
    site.patch("gone", ttlSecondsAfterFinished=0)
    site.patch("kept", ttlSecondsAfterFinished=0, duration="1h")
    site.operator.start()

    site.wait("its deletion", lambda: not exists(site, "gone"), seconds=100)
    site.wait("the longer run", lambda: site.status("kept")["phase"] == "Running", seconds=100)
    assert site.condition("Complete", "kept") == ("False", "InProgress")


@pytest.mark.usefixtures("kubeconfig")
def test_only_a_probe_that_ends_has_a_time_to_live(cluster: Cluster, namespace: str) -> None:
    probe = {
        "apiVersion": "latencyprobe.io/v1alpha1",
        "kind": "LatencyProbe",
        "metadata": {"name": "endless", "namespace": namespace},
        "spec": {"selector": {}, "ttlSecondsAfterFinished": 60},
    }
    with pytest.raises(KubectlError, match="ttlSecondsAfterFinished needs a duration"):
        cluster.apply(probe)


# ----------------------------------------------------------------------------------- GitOps


def apply_server_side(site: Site, **spec: Any) -> dict[str, Any]:
    """Apply the probe as a GitOps tool does; returns the object then."""
    site.cluster.kubectl(
        *("apply", "--server-side", "--field-manager=gitops", "--filename=-"),
        stdin=json.dumps(site.probe(**spec)),
    )
    found: dict[str, Any] = site.cluster.get(
        "latencyprobe", "checkout", f"--namespace={site.namespace}", "--show-managed-fields"
    )
    return found


def difference(site: Site, *options: str, **spec: Any) -> str:
    """The difference that kubectl finds; empty without one."""
    try:
        return site.cluster.kubectl(
            *("diff", *options, "--filename=-"), stdin=json.dumps(site.probe(**spec))
        )
    except KubectlError as error:
        if error.exit_code != 1:
            raise
        return "they differ"


OBJECTIVE = {"name": "reads", "stage": "rx.total", "percentile": "p99", "max": "5ms"}
GIT: dict[str, Any] = {
    "interval": "2000ms",
    "window": "0.5m",
    "duration": "90m",
    "objectives": [OBJECTIVE],
}


def test_server_side_apply_meets_no_conflict_and_no_drift(site: Site) -> None:
    apply_server_side(site, **GIT)
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))
    first = apply_server_side(site, **GIT)
    again = apply_server_side(site, **GIT)

    assert again["metadata"]["generation"] == first["metadata"]["generation"] == 1
    # kubectl reads and then asks: a status that is written in between would be a difference.
    with site.operator.halted():
        assert difference(site, "--server-side", "--field-manager=gitops", **GIT) == ""
    fields = {
        (each["manager"], each.get("subresource", "")): json.dumps(each["fieldsV1"])
        for each in again["metadata"]["managedFields"]
    }
    of_spec = {manager for manager, owned in fields.items() if '"f:spec"' in owned}
    assert of_spec == {("gitops", "")}
    assert '"f:status"' in fields["latencyprobe-operator", "status"]


def test_server_side_apply_replaces_the_default_modules(site: Site) -> None:
    assert apply_server_side(site)["spec"]["modules"] == ["rx", "tx", "tcp"]
    assert apply_server_side(site, modules=["rx"])["spec"]["modules"] == ["rx"]
    assert apply_server_side(site)["spec"]["modules"] == ["rx", "tx", "tcp"]


def test_client_side_apply_finds_no_drift(site: Site) -> None:
    site.apply(**GIT)
    site.wait("figures", lambda: site.status().get("summary", {}).get("p99"))

    assert difference(site, **GIT) == ""
    assert difference(site, **{**GIT, "interval": "2s"}) == "they differ"
    # The difference of three sides, in which a list is one value, as Argo CD's.
    applied = site.cluster.kubectl("apply", "--filename=-", stdin=json.dumps(site.probe(**GIT)))
    assert applied.split()[-1] == "unchanged"
    assert site.status()["conditions"][3]["type"] == "ObjectivesMet"


# ------------------------------------------------------------------------------------ lists


def test_probes_can_be_sorted_selected_and_read_at_a_glance(site: Site) -> None:
    site.apply("a", objectives=[{**OBJECTIVE, "max": "1us", "for": "1s"}])
    site.apply("b", **LATER)
    site.wait("a verdict", lambda: site.condition("ObjectivesMet", "a")[0] == "False", seconds=60)
    site.wait("its status", lambda: site.status("b").get("phase") == "Pending")

    def names(*options: str) -> list[str]:
        return site.kubectl("get", "latencyprobe", "--output=name", *options).split()

    a, b = ("latencyprobe.latencyprobe.io/a", "latencyprobe.latencyprobe.io/b")
    assert names("--sort-by=.status.summary.p99Ns") == [b, a]
    assert names("--field-selector=status.phase=Running") == [a]
    assert names("--field-selector=status.summary.bottleneck=SlowReader") == [a]
    assert names("a") == [a]
    assert site.status("a")["summary"]["p99Ns"] == 10**7
    header, row, _ = site.kubectl("get", "latencyprobe", "--output=wide").splitlines()
    cells = {
        name: row[header.index(name) :].split("  ")[0].strip()
        for name in ("OBJECTIVESMET", "NODES", "STAGE", "OBJECTIVE ", "MESSAGE")
    }
    assert cells["OBJECTIVESMET"] == "False"
    assert cells["NODES"] == "1"
    assert cells["STAGE"] == "rx.socket"
    assert cells["OBJECTIVE "].startswith("reads: p99 of rx.total is 10ms, at most 1us")
    assert "rx.socket" in cells["MESSAGE"]
    assert "objective missed: p99 of rx.total is 10ms, at most 1us" in cells["MESSAGE"]


# ----------------------------------------------------------------------------------- Events


def events(site: Site, reason: str = "") -> list[dict[str, Any]]:
    """The Events of this namespace's probes, with this reason or with any."""
    found = site.cluster.get("events.events.k8s.io", f"--namespace={site.namespace}")["items"]
    return [
        each
        for each in found
        if each["regarding"]["kind"] == "LatencyProbe" and reason in ("", each["reason"])
    ]


def missed_or_met(site: Site, limit: str) -> None:
    """Set the limit of the objective, and wait for the judgement."""
    expected = "False" if limit == "1us" else "True"
    site.patch("checkout", objectives=[{**OBJECTIVE, "max": limit, "for": "1s"}])
    site.wait(
        f"the judgement by {limit}",
        lambda: limit in judgement(site)[1] and judgement(site)[0] == expected,
        seconds=60,
    )


def judgement(site: Site) -> tuple[str, str]:
    """(status, message) of ObjectivesMet."""
    for each in site.status().get("conditions", ()):
        if each["type"] == "ObjectivesMet":
            return each["status"], each["message"]
    return "", ""


def test_transitions_are_events_that_describe_shows_with_the_conditions(site: Site) -> None:
    site.apply(objectives=[{**OBJECTIVE, "max": "1us", "for": "1s"}])
    site.wait("the Event", lambda: events(site, "ObjectiveMissed"), seconds=60)
    site.agent.stop(signal.SIGKILL)
    site.wait("the loss", lambda: events(site, "NodeLost"), seconds=200)
    site.agent.start()
    site.wait("the return", lambda: events(site, "NodeBack"), seconds=100)
    site.wait("rows", lambda: len(site.status().get("pods", ())) == 2)

    (missed,) = events(site, "ObjectiveMissed")
    assert missed["type"] == "Warning"
    assert missed["reportingController"] == "latencyprobe.io/operator"
    assert missed["note"].startswith("missed: reads: p99 of rx.total is 10ms, at most 1us")
    (lost,) = events(site, "NodeLost")
    assert site.cluster.node_name in lost["note"]
    described = site.kubectl("describe", "latencyprobe", "checkout")
    condition = next(each for each in site.status()["conditions"] if each["type"] == "Ready")
    for expected in (condition["message"], missed["note"], lost["note"], "Next Step:"):
        assert expected in " ".join(described.split())
    assert described.index("Conditions:") < described.index("\nEvents:")
    lines = described[described.index("\nEvents:") :].splitlines()
    assert any("Warning" in line and "ObjectiveMissed" in line for line in lines)


@pytest.mark.thorough  # test_events.py counts flips too, with less waiting
def test_flips_are_counted_in_one_event_each(site: Site) -> None:
    site.apply(objectives=[{**OBJECTIVE, "max": "1us", "for": "1s"}])
    site.wait("the Event", lambda: events(site, "ObjectiveMissed"), seconds=60)
    for limit in ("100s", "1us", "100s", "1us"):
        missed_or_met(site, limit)

    def counts() -> dict[str, int]:
        return {
            each["reason"]: each["series"]["count"] for each in events(site) if "series" in each
        }

    expected = {"ObjectiveMissed": 3, "ObjectiveMet": 2}
    site.wait("the counts", lambda: counts() == expected, seconds=200)
    assert len(events(site, "ObjectiveMissed")) == len(events(site, "ObjectiveMet")) == 1


def test_without_the_right_to_write_events_all_else_works(site: Site) -> None:
    role = site.cluster.get("clusterrole", "latencyprobe-operator")
    kept = [rule for rule in role["rules"] if "events" not in rule["resources"]]
    assert len(kept) == len(role["rules"]) - 1
    site.cluster.apply({**role, "rules": kept})
    site.apply(objectives=[{**OBJECTIVE, "max": "1us", "for": "1s"}])
    site.wait("the judgement", lambda: judgement(site)[0] == "False", seconds=60)
    for limit in ("100s", "1us"):
        missed_or_met(site, limit)

    assert events(site) == []
    assert site.operator.log.read_text().count("cannot write Events") == 1
    assert site.status()["phase"] == "Running"
