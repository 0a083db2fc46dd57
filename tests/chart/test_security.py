"""What the pods of the chart may do, whatever the values."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.helm import VALUES_FILES, Helm, Manifest, Manifests, container
from tests.chart.pod_security import beyond_baseline, beyond_restricted
from tools.helm.chart import NAMESPACE

AGENT = "latencyprobe-agent"
OPERATOR = "latencyprobe-operator"


@pytest.fixture(params=VALUES_FILES, ids=lambda path: path.stem)
def rendered(helm: Helm, request: pytest.FixtureRequest) -> Manifests:
    """The manifests of each values file."""
    values: Path = request.param
    return helm.manifests(values=values)


@pytest.fixture
def defaults(helm: Helm) -> Manifests:
    """The manifests without any value."""
    return helm.manifests()


def agent_pod(manifests: Manifests) -> Manifest:
    (daemonset,) = manifests.of_kind("DaemonSet")
    template: Manifest = daemonset["spec"]["template"]
    return template


def operator_pods(manifests: Manifests) -> list[Manifest]:
    return [pod["spec"]["template"] for pod in manifests.of_kind("Deployment", "Job")]


def rules(role: Manifest) -> list[tuple[str, str, str]]:
    """Group, resource, verb of all that a role allows."""
    return sorted(
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def test_the_operators_pods_are_restricted(rendered: Manifests) -> None:
    assert [beyond_restricted(pod) for pod in operator_pods(rendered)] == [[], []]


def test_no_pod_writes_to_its_root_file_system(rendered: Manifests) -> None:
    contexts = [container(pod)["securityContext"] for _, pod in rendered.pods()]

    assert len(contexts) == 3
    assert all(context["readOnlyRootFilesystem"] for context in contexts)
    assert all(context["capabilities"]["drop"] == ["ALL"] for context in contexts)
    assert all(context["allowPrivilegeEscalation"] is False for context in contexts)


def test_the_agent_needs_a_known_list_beyond_baseline(defaults: Manifests) -> None:
    assert beyond_baseline(agent_pod(defaults)) == [
        "appArmorProfile Unconfined",
        "capability BPF",
        "capability PERFMON",
        "capability SYS_ADMIN",
        "capability SYS_PTRACE",
        "hostPID",
        "hostPath /sys/fs/cgroup",
    ]


def test_values_reduce_the_needs_of_the_agent(helm: Helm) -> None:
    manifests = helm.manifests(
        "agent.measureOverhead=false",
        "agent.appArmorProfile.type=Localhost",
        "agent.appArmorProfile.localhostProfile=latencyprobe-agent",
    )

    assert beyond_baseline(agent_pod(manifests)) == [
        "capability BPF",
        "capability PERFMON",
        "capability SYS_PTRACE",
        "hostPID",
        "hostPath /sys/fs/cgroup",
    ]


@pytest.mark.parametrize("net_admin", [True, False])
@pytest.mark.parametrize("sys_admin", [True, False])
def test_the_agent_has_the_capabilities_that_are_chosen(
    helm: Helm, net_admin: bool, sys_admin: bool
) -> None:
    chosen = helm.manifests(
        f"agent.netAdmin={str(net_admin).lower()}",
        f"agent.measureOverhead={str(sys_admin).lower()}",
    )
    capabilities = container(agent_pod(chosen))["securityContext"]["capabilities"]

    assert capabilities["drop"] == ["ALL"]
    assert capabilities["add"] == [
        *("BPF", "PERFMON", "SYS_PTRACE"),
        *(["SYS_ADMIN"] if sys_admin else []),
        *(["NET_ADMIN"] if net_admin else []),
    ]


def test_the_agent_cannot_write_to_the_host(rendered: Manifests) -> None:
    pod = agent_pod(rendered)
    from_host = {volume["name"] for volume in pod["spec"]["volumes"] if "hostPath" in volume}
    mounts = [m for m in container(pod)["volumeMounts"] if m["name"] in from_host]

    assert len(mounts) == len(from_host)
    assert all(mount["readOnly"] for mount in mounts)


def test_the_object_cache_is_the_only_folder_of_the_host_that_it_may_write_to(helm: Helm) -> None:
    kept = agent_pod(helm.manifests("agent.objectCache.hostPath=/var/cache/latencyprobe"))
    volumes = {volume["name"]: volume for volume in kept["spec"]["volumes"]}
    writable = {
        mount["name"]: mount["mountPath"]
        for mount in container(kept)["volumeMounts"]
        if not mount.get("readOnly") and "hostPath" in volumes[mount["name"]]
    }
    assert writable == {"objects": "/var/cache/latencyprobe"}
    assert volumes["objects"]["hostPath"] == {
        "path": "/var/cache/latencyprobe",
        "type": "DirectoryOrCreate",
    }


def test_the_agent_keeps_objects_in_a_folder_of_its_own_below_the_volume(
    rendered: Manifests,
) -> None:
    pod = container(agent_pod(rendered))
    (mount,) = (mount for mount in pod["volumeMounts"] if mount["name"] == "objects")
    (option,) = (each for each in pod["args"] if each.startswith("--object-cache="))
    assert option == f"--object-cache={mount['mountPath']}/objects"


def test_the_agent_has_no_token_and_no_role(rendered: Manifests) -> None:
    pod = agent_pod(rendered)["spec"]
    account = rendered.one("ServiceAccount", pod["serviceAccountName"])
    subjects = [
        subject["name"]
        for binding in rendered.of_kind("RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
    ]

    assert pod["automountServiceAccountToken"] is False
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["name"] not in subjects


def test_the_operator_may_do_what_it_does_and_no_more(defaults: Manifests) -> None:
    assert rules(defaults.one("ClusterRole", OPERATOR)) == [
        ("", "pods", "list"),
        ("", "pods", "watch"),
        ("apiextensions.k8s.io", "customresourcedefinitions", "list"),
        ("apiextensions.k8s.io", "customresourcedefinitions", "watch"),
        ("events.k8s.io", "events", "create"),
        ("events.k8s.io", "events", "patch"),
        ("latencyprobe.io", "latencyprobes", "delete"),
        ("latencyprobe.io", "latencyprobes", "get"),
        ("latencyprobe.io", "latencyprobes", "list"),
        ("latencyprobe.io", "latencyprobes", "patch"),
        ("latencyprobe.io", "latencyprobes", "watch"),
        ("latencyprobe.io", "latencyprobes/status", "patch"),
    ]


def test_with_namespaces_the_operator_may_do_nothing_elsewhere(helm: Helm) -> None:
    manifests = helm.manifests("operator.watchNamespaces={shop,cart}")
    roles = {role["metadata"]["namespace"]: rules(role) for role in manifests.of_kind("Role")}

    of_people = {"latencyprobe-edit", "latencyprobe-view"}
    assert {r["metadata"]["name"] for r in manifests.of_kind("ClusterRole")} == of_people
    assert manifests.of_kind("ClusterRoleBinding") == []
    assert roles["latencyprobe-agents"] == [("", "pods", "list"), ("", "pods", "watch")]
    assert roles.keys() == {"shop", "cart", "latencyprobe-agents", NAMESPACE}
    assert {resource for _, resource, _ in roles[NAMESPACE]} == {"leases"}


def test_the_operator_may_hold_its_own_lease_and_no_other(defaults: Manifests) -> None:
    (role,) = defaults.of_kind("Role")
    (binding,) = defaults.of_kind("RoleBinding")

    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == NAMESPACE
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    named, making = role["rules"]
    assert (named["resourceNames"], named["verbs"]) == ([OPERATOR], ["get", "update"])
    assert (making["resources"], making["verbs"]) == (["leases"], ["create"])


def test_people_see_and_write_the_probes_of_their_namespaces(defaults: Manifests) -> None:
    view = defaults.one("ClusterRole", "latencyprobe-view")
    edit = defaults.one("ClusterRole", "latencyprobe-edit")
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"

    assert {resource for _, resource, _ in rules(view) + rules(edit)} == {"latencyprobes"}
    assert [verb for _, _, verb in rules(view)] == ["get", "list", "watch"]
    assert f"{aggregate}view" in view["metadata"]["labels"]
    assert f"{aggregate}view" not in edit["metadata"]["labels"]
    assert {f"{aggregate}edit", f"{aggregate}admin"} <= edit["metadata"]["labels"].keys()


def test_only_the_operator_reaches_the_agents(defaults: Manifests) -> None:
    spec = defaults.one("NetworkPolicy", AGENT)["spec"]
    (rule,) = spec["ingress"]
    (peer,) = rule["from"]
    (operator,) = defaults.of_kind("Deployment")

    assert spec["podSelector"]["matchLabels"].items() <= labels(agent_pod(defaults)).items()
    assert peer["podSelector"]["matchLabels"] == operator["spec"]["selector"]["matchLabels"]
    assert peer["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "latencyprobe-system"
    }
    assert rule["ports"] == [{"port": 9345}]
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [])


def test_no_pod_reaches_the_operator(defaults: Manifests) -> None:
    assert defaults.one("NetworkPolicy", OPERATOR)["spec"]["ingress"] == []


def test_the_operators_egress_can_be_closed(helm: Helm) -> None:
    manifests = helm.manifests("networkPolicy.apiServer[0].ipBlock.cidr=10.0.0.1/32")
    spec = manifests.one("NetworkPolicy", OPERATOR)["spec"]
    agents, api_server = spec["egress"]

    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert agents["ports"] == [{"port": 9345}]
    assert api_server == {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}


def labels(template: Manifest) -> dict[str, str]:
    found: dict[str, str] = template["metadata"]["labels"]
    return found
