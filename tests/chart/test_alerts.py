"""The alerts as the chart renders them: they fire, heal, and lead to their section in the docs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import Helm, Manifest
from tests.unit.exported import exported_metrics
from tools.helm.chart import CHART, NAMESPACE, ROOT, HelmError

Rule = dict[str, Any]

PAGE = ROOT / "docs" / "alerts.md"
TESTS = Path(__file__).with_name("alerts.test.yaml")
ENABLED = "prometheusRules.enabled=true"
SUBJECTS = ["Meaning", "Impact", "Find out", "Do"]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory, helm: Helm) -> Path:
    """A file of rules, as the Prometheus operator makes it of the object."""
    path = tmp_path_factory.mktemp("rules") / "alerts.yaml"
    path.write_text(yaml.safe_dump(rendered(helm)["spec"]))
    return path


def rendered(helm: Helm, *settings: str) -> Manifest:
    (found,) = helm.manifests(ENABLED, *settings).of_kind("PrometheusRule")
    return found


def alerts_of(rule: Manifest) -> dict[str, Rule]:
    return {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"]}


def shipped() -> dict[str, Rule]:
    return alerts_of({"spec": yaml.safe_load((CHART / "files/alerts.yaml").read_text())})


def promtool(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules(rules: Path) -> None:
    checked = promtool("check", "rules", rules.name, folder=rules.parent)

    assert f"SUCCESS: {len(shipped())} rules found" in checked


def test_each_alert_fires_and_heals_as_its_tests_say(rules: Path) -> None:
    shutil.copy(TESTS, rules.parent)
    promtool("test", "rules", TESTS.name, folder=rules.parent)


def test_the_tests_have_each_alert_firing_healed_and_without_data() -> None:
    fires, heals, without_data = set(), set(), set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        expected: Mapping[str, list[bool]] = defaultdict(list)
        for each in test["alert_rule_test"]:
            expected[each["alertname"]].append(bool(each["exp_alerts"]))
        for name, fired in expected.items():
            assert test["name"].startswith(f"{name} "), test["name"]
            if fired[0] is False and True in fired:
                fires.add(name)
            if fired[-1] is False and True in fired:
                heals.add(name)
            if test["name"].endswith(" without data"):
                without_data.add(name)

    assert fires == heals == without_data == set(shipped())


def test_the_shipped_file_is_a_file_of_rules_by_itself(helm: Helm) -> None:
    assert alerts_of(rendered(helm)) == {
        name: {**rule, "expr": rule["expr"].strip()} for name, rule in shipped().items()
    }


@pytest.mark.parametrize("name", list(shipped()))
def test_an_alert_uses_metrics_that_are_exported(name: str, tmp_path: Path) -> None:
    used = set(re.findall(r"\blatencyprobe_\w+", shipped()[name]["expr"]))

    assert used
    assert used <= exported_metrics(tmp_path)


@pytest.mark.parametrize("name", list(shipped()))
def test_the_runbook_of_an_alert_has_its_section(name: str) -> None:
    base, _, anchor = shipped()[name]["annotations"]["runbook_url"].partition("#")
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = (each for each in sections if each.partition("\n")[0] == name)

    assert Path(base).name == PAGE.name
    assert anchor == name.lower()
    assert re.findall(r"^\*\*(.+?)\.\*\*", section, flags=re.MULTILINE) == SUBJECTS
    assert f"severity: {shipped()[name]['labels']['severity']}" in section


def test_the_docs_have_no_alert_that_does_not_exist() -> None:
    headings = re.findall(r"^## (LatencyProbe\w+)$", PAGE.read_text(), flags=re.MULTILINE)

    assert headings == list(shipped())


def test_values_change_the_rules(helm: Helm) -> None:
    changed = rendered(
        helm,
        "prometheusRules.labels.release=monitoring",
        "prometheusRules.alertLabels.severity=page",
        "prometheusRules.alertLabels.team=network",
        "prometheusRules.for.LatencyProbeVerdictStuck=2h",
        "prometheusRules.for.LatencyProbeObjectiveMissed=5m",
        "prometheusRules.disabled={LatencyProbeNoLeader,LatencyProbeOverBudget}",
        "prometheusRules.runbookURL=https://docs.example.org/alerts.md",
    )
    alerts = alerts_of(changed)

    assert changed["metadata"]["labels"]["release"] == "monitoring"
    assert changed["metadata"]["namespace"] == NAMESPACE
    assert shipped().keys() - alerts.keys() == {"LatencyProbeNoLeader", "LatencyProbeOverBudget"}
    assert alerts["LatencyProbeVerdictStuck"]["for"] == "2h"
    assert alerts["LatencyProbeObjectiveMissed"]["for"] == "5m"
    assert alerts["LatencyProbeAgentSilent"]["for"] == "10m"
    for name, alert in alerts.items():
        assert alert["labels"] == {"severity": "page", "team": "network"}
        runbook = alert["annotations"]["runbook_url"]
        assert runbook == f"https://docs.example.org/alerts.md#{name.lower()}"


@pytest.mark.parametrize(
    "setting", ["disabled={Nothing}", "for.Nothing=1h", "for.LatencyProbeNoLeader=soon"]
)
def test_an_unknown_alert_and_an_invalid_time_are_refused(helm: Helm, setting: str) -> None:
    with pytest.raises(HelmError, match=f"prometheusRules/{setting.partition('.')[0][:3]}"):
        rendered(helm, f"prometheusRules.{setting}")


def test_there_are_no_rules_unless_they_are_wanted(helm: Helm) -> None:
    assert helm.manifests().of_kind("PrometheusRule") == []


def test_the_figures_of_an_agent_have_the_name_of_its_node(helm: Helm) -> None:
    """Alerts and dashboards name nodes; an agent's figures on itself have no such label."""
    manifests = helm.manifests(
        "podMonitor.enabled=true",
        "networkPolicy.metricsFrom[0].namespaceSelector.a=b",
        "podMonitor.agentEndpoint.scrapeTimeout=5s",
        "podMonitor.agentEndpoint.relabelings[0].targetLabel=cluster",
        "podMonitor.agentEndpoint.relabelings[0].replacement=blue",
    )
    (endpoint,) = manifests.one("PodMonitor", "latencyprobe-agent")["spec"]["podMetricsEndpoints"]

    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"},
        {"targetLabel": "cluster", "replacement": "blue"},
    ]
    assert endpoint["scrapeTimeout"] == "5s"
