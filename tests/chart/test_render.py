"""What the chart installs: operator and agents that find and know each other."""

from __future__ import annotations

import base64
import datetime
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe_agent.cli import agent_command
from latencyprobe_agent.serving.tls import ServerTlsFiles as AgentFiles
from latencyprobe_operator.agents.credentials import ClientTlsFiles as OperatorFiles
from latencyprobe_operator.cli import operator_command
from tests.chart.helm import (
    VALUES_FILES,
    Helm,
    Manifest,
    Manifests,
    container,
    options,
)
from tools.helm.chart import CHART, NAMESPACE

AGENTS = "latencyprobe-agents"


@pytest.fixture(params=VALUES_FILES, ids=lambda path: path.stem)
def rendered(helm: Helm, request: pytest.FixtureRequest) -> Manifests:
    """The manifests of each values file."""
    values: Path = request.param
    return helm.manifests(values=values)


def only(manifests: Manifests, kind: str) -> Manifest:
    (found,) = manifests.of_kind(kind)
    return found


def test_the_processes_know_the_options_that_they_are_given(rendered: Manifests) -> None:
    commands = {"DaemonSet": agent_command, "Deployment": operator_command}

    for kind, command in commands.items():
        known = {option for each in command.params for option in each.opts}
        given = options(only(rendered, kind)["spec"]["template"])
        assert {f"--{name}" for name in given} <= known


def test_figures_of_nodes_are_for_the_named_namespaces_alone(helm: Helm) -> None:
    def named(*settings: str) -> list[str]:
        (pod,) = (
            each["spec"]["template"] for each in helm.manifests(*settings).of_kind("Deployment")
        )
        prefix = "--node-figures-namespace="
        given: list[str] = container(pod)["args"]
        return [each.removeprefix(prefix) for each in given if each.startswith(prefix)]

    assert named() == []
    assert named("operator.nodeFiguresNamespaces={shop,cart}") == ["shop", "cart"]
    assert named("operator.nodeFiguresNamespaces={*}") == ["*"]


def test_static_pods_are_those_of_the_system_unless_others_are_named(helm: Helm) -> None:
    def named(*settings: str) -> list[str]:
        (pod,) = (
            each["spec"]["template"] for each in helm.manifests(*settings).of_kind("Deployment")
        )
        prefix = "--static-pod-namespace="
        given: list[str] = container(pod)["args"]
        return [each.removeprefix(prefix) for each in given if each.startswith(prefix)]

    assert named() == ["kube-system"]
    assert named("operator.staticPodNamespaces={ops,edge}") == ["ops", "edge"]


def test_the_operator_looks_up_agents_in_their_namespace(rendered: Manifests) -> None:
    agents = only(rendered, "DaemonSet")
    operator = options(only(rendered, "Deployment")["spec"]["template"])
    agent = options(agents["spec"]["template"])
    selector = dict(part.split("=") for part in operator["agent-selector"].split(","))

    assert operator["namespace"] == agents["metadata"]["namespace"]
    assert selector == agents["spec"]["selector"]["matchLabels"]
    assert agent["listen"].rpartition(":")[2] == operator["agent-port"]


def test_probes_and_monitors_ask_ports_that_are_served(rendered: Manifests) -> None:
    for kind, served in (("DaemonSet", "metrics-address"), ("Deployment", "health-address")):
        template = only(rendered, kind)["spec"]["template"]
        pod = container(template)
        ports = {port["name"]: port["containerPort"] for port in pod["ports"]}
        asked = {
            pod[probe]["httpGet"]["port"]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        (name,) = asked
        assert options(template)[served].rpartition(":")[2] == str(ports[name])
        assert "metrics" in ports


def test_each_pod_mounts_its_own_certificate(rendered: Manifests) -> None:
    secrets = [
        volume["secret"]["secretName"]
        for _, pod in rendered.pods()
        for volume in pod["spec"].get("volumes", ())
        if volume["name"] == "tls"
    ]

    assert len(set(secrets)) == len(secrets) == 2


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ([], {}),
        (["clientCASecret=a"], {"client-ca-file": "a"}),
        (["tokenSecret=b"], {"token-file": "b"}),
        (["clientCASecret=a", "tokenSecret=b"], {"client-ca-file": "a", "token-file": "b"}),
    ],
)
def test_the_agents_metrics_want_a_certificate_or_a_token_where_a_secret_is_named(
    helm: Helm, settings: list[str], needed: dict[str, str]
) -> None:
    rendered = helm.manifests(*(f"agent.metrics.{setting}" for setting in settings))
    template = dict(rendered.pods())["latencyprobe-agent"]
    given = options(template)
    mounts = {each["mountPath"]: each["name"] for each in container(template)["volumeMounts"]}
    volumes = {each["name"]: each for each in template["spec"]["volumes"]}

    access = {"metrics-cert-file", "metrics-key-file"} if needed else set()
    access |= {f"metrics-{option}" for option in needed}
    assert {name for name in given if name.startswith("metrics-") and "file" in name} == access
    for option, secret in needed.items():
        folder, _, key = given[f"metrics-{option}"].rpartition("/")
        mounted = volumes[mounts[folder]]["secret"]
        assert mounted["secretName"] == secret
        assert mounted["items"] == [{"key": key, "path": key}]
    schemes = {
        container(template)[name]["httpGet"]["scheme"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert schemes == {"HTTPS" if needed else "HTTP"}


@pytest.mark.parametrize("limit", ["", "5ms"])
def test_the_agents_show_slow_packets_where_a_limit_is_given(helm: Helm, limit: str) -> None:
    rendered = helm.manifests(f"agent.metrics.exemplars={limit}")
    given = options(dict(rendered.pods())["latencyprobe-agent"])

    assert given.get("exemplars", "") == limit


def test_everything_is_named_and_labelled_as_one_release(rendered: Manifests) -> None:
    for item in rendered:
        if item["kind"] != "CustomResourceDefinition":
            labels = item["metadata"]["labels"]
            assert labels["app.kubernetes.io/part-of"] == "latencyprobe"
            assert labels["app.kubernetes.io/instance"] == "latencyprobe"


@pytest.mark.parametrize("values", VALUES_FILES, ids=lambda path: path.stem)
def test_the_notes_have_commands_that_name_the_rendered_objects(helm: Helm, values: Path) -> None:
    notes = helm.notes(values)
    agents = only(helm.manifests(values=values), "DaemonSet")["metadata"]
    probe = yaml.safe_load(notes.partition("<<EOF\n")[2].partition("EOF\n")[0])

    rollout = f"--namespace {agents['namespace']} rollout status daemonset/{agents['name']}"
    assert rollout in notes
    assert (probe["kind"], probe["spec"]) == ("LatencyProbe", {"selector": {}})
    assert f"--namespace {probe['metadata']['namespace']} get latencyprobe everything" in notes


def test_there_are_two_operators_on_different_nodes_where_there_is_room(helm: Helm) -> None:
    spec = only(helm.manifests(), "Deployment")["spec"]
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]

    assert spec["replicas"] == 2
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"] == spec["selector"]


def test_an_operator_goes_once_its_successor_is_ready(helm: Helm) -> None:
    spec = only(helm.manifests("operator.replicas=1"), "Deployment")["spec"]

    assert spec["replicas"] == 1
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }


def test_the_operators_lease_is_the_one_that_they_may_hold(rendered: Manifests) -> None:
    operator = options(only(rendered, "Deployment")["spec"]["template"])
    role = rendered.one("Role", f"{operator['lease-name']}-lease")

    assert role["metadata"]["namespace"] == operator["lease-namespace"] == NAMESPACE
    assert role["rules"][0]["resourceNames"] == [operator["lease-name"]]


def test_the_times_of_the_lease_are_values(helm: Helm) -> None:
    settings = ("leaseDurationSeconds=60", "renewDeadlineSeconds=40", "retryPeriodSeconds=5")
    manifests = helm.manifests(*(f"operator.leaderElection.{each}" for each in settings))
    given = options(only(manifests, "Deployment")["spec"]["template"])

    times = [given[f"lease-{each}"] for each in ("duration", "renew-deadline", "retry-period")]
    assert times == ["60s", "40s", "5s"]


def test_agents_are_on_every_node_of_linux(helm: Helm) -> None:
    spec = only(helm.manifests(), "DaemonSet")["spec"]["template"]["spec"]

    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ([], "latencyprobe-agent:0.1.0"),
        (["agent.image.tag=edge"], "latencyprobe-agent:edge"),
        (["agent.image.repository=example.org/agent"], "example.org/agent:0.1.0"),
        (["global.imageRegistry=mirror:5000/x/"], "mirror:5000/x/latencyprobe-agent:0.1.0"),
        ([f"agent.image.digest=sha256:{'0' * 64}"], f"latencyprobe-agent@sha256:{'0' * 64}"),
        (
            ["agent.image.tag=edge", f"agent.image.digest=sha256:{'0' * 64}"],
            f"latencyprobe-agent:edge@sha256:{'0' * 64}",
        ),
    ],
)
def test_images_come_from_where_they_are_said_to(
    helm: Helm, settings: list[str], image: str
) -> None:
    agents = only(helm.manifests(*settings), "DaemonSet")

    assert container(agents["spec"]["template"])["image"] == image


@pytest.mark.parametrize(
    ("kind", "component"), [("Deployment", "operator"), ("DaemonSet", "agent")]
)
def test_both_images_are_taken_by_their_digest(helm: Helm, kind: str, component: str) -> None:
    digest = f"sha256:{'1' * 64}"
    workload = only(helm.manifests(f"{component}.image.digest={digest}"), kind)

    image = container(workload["spec"]["template"])["image"]
    assert image == f"latencyprobe-{component}@{digest}"


def test_an_uninstall_keeps_the_crd_unless_a_value_says_otherwise(helm: Helm) -> None:
    keep = {"helm.sh/resource-policy": "keep"}

    crd = only(helm.manifests(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == keep
    crd = only(helm.manifests("crds.keep=false"), "CustomResourceDefinition")
    assert "annotations" not in crd["metadata"]
    assert helm.manifests("crds.install=false").of_kind("CustomResourceDefinition") == []


def test_all_that_runs_after_an_uninstall_is_a_hook_that_is_deleted(helm: Helm) -> None:
    name = "latencyprobe-release"
    hooks = [item for item in helm.manifests() if item["metadata"]["name"] == name]

    assert [item["kind"] for item in hooks] == [
        *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Job")
    ]
    for item in hooks:
        annotations = item["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "post-delete"
        assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"]
    assert not [
        item
        for item in helm.manifests("operator.releaseOnUninstall=false")
        if item["metadata"]["name"] == name
    ]


# ---------------------------------------------------------------- generated certificates


def files_of(manifests: Manifests, component: str, directory: Path) -> tuple[Path, Path, Path]:
    """CA, certificate and key of a generated Secret, written to files."""
    secret = manifests.one("Secret", f"latencyprobe-{component}-tls")
    paths = []
    for key in ("ca.crt", "tls.crt", "tls.key"):
        paths.append(directory / f"{component}-{key}")
        paths[-1].write_bytes(base64.b64decode(secret["data"][key]))
    ca, certificate, private_key = paths
    return ca, certificate, private_key


def test_generated_certificates_fit_the_authority_that_the_other_side_trusts(
    helm: Helm, tmp_path: Path
) -> None:
    manifests = helm.manifests("tls.generated.days=30")
    authorities = set()
    for component, name, peer in (
        ("agent", AGENT_NAME, "operator"),
        ("operator", OPERATOR_NAME, "agent"),
    ):
        _, certificate_path, _ = files_of(manifests, component, tmp_path)
        ca_path, _, _ = files_of(manifests, peer, tmp_path)
        ca = x509.load_pem_x509_certificate(ca_path.read_bytes())
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        certificate.verify_directly_issued_by(ca)
        assert names.value.get_values_for_type(x509.DNSName) == [name]
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert lifetime == datetime.timedelta(days=30)
        authorities.add(ca.fingerprint(ca.signature_hash_algorithm))  # type: ignore[arg-type]
    assert len(authorities) == 2


def test_both_sides_can_read_what_was_generated(helm: Helm, tmp_path: Path) -> None:
    manifests = helm.manifests()

    AgentFiles(*files_of(manifests, "agent", tmp_path)).context()
    OperatorFiles(*files_of(manifests, "operator", tmp_path)).credentials()


def test_the_authoritys_key_is_kept_nowhere(helm: Helm, tmp_path: Path) -> None:
    manifests = helm.manifests()

    files = [files_of(manifests, component, tmp_path) for component in ("agent", "operator")]
    authorities = [x509.load_pem_x509_certificate(ca.read_bytes()) for ca, _, _ in files]
    for _, _, key in files:
        public = load_pem_private_key(key.read_bytes(), password=None).public_key()
        assert public not in [authority.public_key() for authority in authorities]
    assert {key for s in manifests.of_kind("Secret") for key in s["data"]} == {
        *("ca.crt", "tls.crt", "tls.key")
    }


def test_the_operators_key_is_not_where_the_agents_are(helm: Helm) -> None:
    places = {
        secret["metadata"]["name"]: secret["metadata"]["namespace"]
        for secret in helm.manifests().of_kind("Secret")
    }

    assert places == {
        "latencyprobe-operator-tls": NAMESPACE,
        "latencyprobe-agent-tls": AGENTS,
    }


def test_cert_manager_makes_a_client_and_a_server(helm: Helm) -> None:
    manifests = helm.manifests("tls.source=certManager", "tls.certManager.issuerRef.name=ca")
    made = {
        item["metadata"]["namespace"]: (item["spec"]["dnsNames"], item["spec"]["usages"][-1])
        for item in manifests.of_kind("Certificate")
    }

    assert made == {
        NAMESPACE: ([OPERATOR_NAME], "client auth"),
        AGENTS: ([AGENT_NAME], "server auth"),
    }
    assert manifests.of_kind("Secret") == []


def test_the_documented_revocation_replaces_what_cert_manager_makes(helm: Helm) -> None:
    """The authority is that of the issuer in the chart's README."""
    manifests = helm.manifests("tls.source=certManager", "tls.certManager.issuerRef.name=ca")
    (issuer,) = re.findall(
        r"```yaml\n([^`]*kind: ClusterIssuer.*?)```", (CHART / "README.md").read_text(), re.DOTALL
    )
    documented = (CHART.parents[1] / "docs/security.md").read_text()

    certificates = [*yaml.safe_load_all(textwrap.dedent(issuer)), *manifests.of_kind("Certificate")]
    deleted = re.findall(r"\$ kubectl --namespace (\S+) delete secret (\S+)\n", documented)

    made = [
        (each["metadata"]["namespace"], each["spec"]["secretName"])
        for each in certificates
        if each["kind"] == "Certificate"
    ]
    assert made[0] == deleted[0]  # it signs the others
    assert set(made) == set(deleted)
    assert len(deleted) == 3
