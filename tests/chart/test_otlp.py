"""The push of metrics by OTLP: options, Secrets and policies that fit each other, or none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import Helm, Manifest, Manifests, container, options
from tools.helm.chart import HelmError

PODS = {"latencyprobe-operator": "0440", "latencyprobe-agent": "0400"}
PEER = {"podSelector": {"matchLabels": {"app": "collector"}}}
TO = "networkPolicy.otlpTo[0].podSelector.matchLabels.app=collector"
ON = ("otlp.endpoint=collector.observability.svc:4317", TO)
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
SECRETS = {
    "caSecret": ("otlp-ca", ["ca.crt"]),
    "clientSecret": ("otlp-client", ["tls.crt", "tls.key"]),
    "headersSecret": ("otlp-headers", ["headers"]),
}


def template_of(manifests: Manifests, name: str) -> Manifest:
    return dict(manifests.pods())[name]


def egress(manifests: Manifests, name: str) -> Any:
    return manifests.one("NetworkPolicy", name)["spec"].get("egress")


@pytest.mark.parametrize("pod", PODS)
def test_without_an_endpoint_nothing_is_pushed(helm: Helm, pod: str) -> None:
    manifests = helm.manifests()
    template = template_of(manifests, pod)

    assert not [name for name in options(template) if name.startswith("otlp")]
    assert not [v for v in template["spec"]["volumes"] if v["name"].startswith("otlp")]
    assert egress(manifests, "latencyprobe-agent") == []


@pytest.mark.parametrize("pod", PODS)
def test_both_push_with_the_files_of_the_secrets(helm: Helm, pod: str) -> None:
    named = [f"otlp.{value}=my-{name}" for value, (name, _) in SECRETS.items()]
    template = template_of(helm.manifests(*ON, *named, "otlp.interval=1m"), pod)
    given = options(template)
    mounts = {m["mountPath"]: m["name"] for m in container(template)["volumeMounts"]}
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}

    assert (given["otlp-endpoint"], given["otlp-interval"]) == (
        "collector.observability.svc:4317",
        "1m",
    )
    assert "otlp-insecure" not in given
    files = {path for name, path in given.items() if name.startswith("otlp") and "file" in name}
    for name, keys in SECRETS.values():
        secret = volumes[mounts[f"/etc/latencyprobe/{name}"]]["secret"]
        assert secret["secretName"] == f"my-{name}"
        assert [item["path"] for item in secret["items"]] == keys
        assert secret["defaultMode"] == int(PODS[pod], 8)
        files -= {f"/etc/latencyprobe/{name}/{key}" for key in keys}
    assert not files


@pytest.mark.parametrize("pod", PODS)
def test_each_pod_says_which_one_it_is(helm: Helm, pod: str) -> None:
    more = "otlp.resourceAttributes.k8s\\.cluster\\.name=prod east"
    template = template_of(helm.manifests(*ON, more, "operator.extraEnv[0].name=X"), pod)
    prefix = "--otlp-resource-attribute="
    arguments = container(template)["args"]
    given = dict(
        each.removeprefix(prefix).split("=") for each in arguments if each.startswith(prefix)
    )
    known = {each["name"] for each in container(template)["env"]}

    of_node = {"k8s.node.name": "$(NODE_NAME)"} if pod.endswith("operator") else {}
    assert given == {
        "k8s.namespace.name": "$(POD_NAMESPACE)",
        "k8s.pod.name": "$(POD_NAME)",
        "k8s.container.name": container(template)["name"],
        "k8s.cluster.name": "prod east",
        **of_node,
    }
    assert {"NODE_NAME", "POD_NAME", "POD_NAMESPACE"} <= known


def test_the_agents_may_connect_to_the_collector_and_to_name_servers_alone(helm: Helm) -> None:
    by_name = helm.manifests(*ON)
    by_address = helm.manifests("otlp.endpoint=10.0.0.7:4317", TO)

    assert egress(by_name, "latencyprobe-agent") == [{"to": [PEER]}, DNS]
    assert egress(by_address, "latencyprobe-agent") == [{"to": [PEER]}]
    spec = template_of(by_name, "latencyprobe-agent")["spec"]
    assert spec["dnsPolicy"] == "ClusterFirst"
    spec = template_of(helm.manifests(), "latencyprobe-agent")["spec"]
    assert spec["dnsPolicy"] == "Default"


def test_an_operator_with_closed_egress_may_connect_to_the_collector(helm: Helm) -> None:
    closed = "networkPolicy.apiServer[0].ipBlock.cidr=10.0.0.1/32"

    rules = egress(helm.manifests(*ON, closed), "latencyprobe-operator")

    assert rules[-2:] == [{"to": [PEER]}, DNS]
    assert egress(helm.manifests(*ON), "latencyprobe-operator") is None


def test_tls_is_left_out_if_asked_for(helm: Helm) -> None:
    manifests = helm.manifests(*ON, "otlp.insecure=true")

    assert all("otlp-insecure" in options(template_of(manifests, pod)) for pod in PODS)


@pytest.mark.parametrize(
    ("endpoint", "is_valid"),
    [
        ("collector:4317", True),
        ("[fd00::7]:4317", True),
        ("https://collector:4317", False),
        ("collector", False),
        ("fd00::7:4317", False),
        ("collector:0", False),
    ],
)
def test_the_schema_knows_an_endpoint(helm: Helm, endpoint: str, *, is_valid: bool) -> None:
    if is_valid:
        helm.manifests(f"otlp.endpoint={endpoint}", TO)
        return
    with pytest.raises(HelmError, match="at '/otlp/endpoint'"):
        helm.manifests(f"otlp.endpoint={endpoint}", TO)
