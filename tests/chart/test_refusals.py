"""Values that are wrong, or contradict each other, are refused with what to change."""

from __future__ import annotations

import pytest

from tests.chart.helm import Helm
from tools.helm.chart import NAMESPACE, HelmError

OWN_NAMESPACE = ("agent.namespace.create=false", f"agent.namespace.name={NAMESPACE}")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["tls.existingSecrets.operator=mine"], "set tls.source=existingSecrets to use them"),
        (["tls.certManager.issuerRef.name=ca"], "set tls.source=certManager to use it"),
        (
            ["tls.source=existingSecrets", "tls.existingSecrets.operator=mine"],
            "needs tls.existingSecrets.agent, the name of a Secret with ca.crt, tls.crt and",
        ),
        (
            [
                "tls.source=existingSecrets",
                "tls.existingSecrets.operator=mine",
                "tls.existingSecrets.agent=mine",
                *OWN_NAMESPACE,
            ],
            "are the same Secret: with the operator's key any node could command all agents",
        ),
        (
            [
                "tls.source=existingSecrets",
                "tls.existingSecrets.operator=a",
                "tls.existingSecrets.agent=b",
                "tls.generated.rotation=now",
            ],
            "leave it empty",
        ),
        (
            [
                "tls.source=certManager",
                "tls.certManager.issuerRef.name=ca",
                "tls.generated.revocation=now",
            ],
            "leave it empty, and replace the authority at its source",
        ),
        (
            ["operator.leaderElection.leaseDurationSeconds=10"],
            "must be above renewDeadlineSeconds (10)",
        ),
        (
            ["operator.leaderElection.renewDeadlineSeconds=2"],
            "above retryPeriodSeconds (2): raise the first, or lower the others",
        ),
        (["tls.source=certManager"], "needs tls.certManager.issuerRef.name"),
        (
            [
                "tls.source=certManager",
                "tls.certManager.issuerRef.name=ca",
                "tls.certManager.issuerRef.kind=Issuer",
            ],
            "use a ClusterIssuer, or set agent.namespace.create=false",
        ),
        ([f"agent.namespace.name={NAMESPACE}"], "set agent.namespace.create=false"),
        (["agent.namespace.name="], "set agent.namespace.create=false"),
        (
            [
                "operator.podDisruptionBudget.minAvailable=0",
                "operator.podDisruptionBudget.maxUnavailable=1",
            ],
            "leave one of them empty",
        ),
        (
            ["agent.priorityClass.name=system-node-critical"],
            "set agent.priorityClass.create=false to use it",
        ),
        (["podMonitor.enabled=true"], "name Prometheus in networkPolicy.metricsFrom"),
        (
            ["podMonitor.enabled=true", "agent.metrics.tokenSecret=scrapers"],
            "give podMonitor.agentEndpoint a tlsConfig with serverName agent.latencyprobe.io",
        ),
        (["otlp.headersSecret=x"], "set otlp.endpoint=HOST:PORT, or leave the others empty"),
        (["otlp.endpoint=collector:4317"], "name the collector in networkPolicy.otlpTo"),
        (
            ["otlp.endpoint=collector:4317", "otlp.insecure=true", "otlp.headersSecret=x"],
            "set otlp.insecure=false, or leave the Secrets empty",
        ),
        (["agent.metricsPort=9345"], "agent.port and agent.metricsPort are the same port, 9345"),
        (["operator.healthPort=9347"], "operator.metricsPort and operator.healthPort are the same"),
        (["rbac.create=false"], "set rbac.aggregate=false too"),
        (["rbac.create=false", "rbac.aggregate=false"], "set operator.releaseOnUninstall=false"),
        (
            ["agent.appArmorProfile.localhostProfile=x"],
            "needs agent.appArmorProfile.type=Localhost, not Unconfined",
        ),
        (
            ["agent.seccompProfile.localhostProfile=x"],
            "needs agent.seccompProfile.type=Localhost, not RuntimeDefault",
        ),
    ],
)
def test_contradictory_values_are_refused(helm: Helm, settings: list[str], advice: str) -> None:
    with pytest.raises(HelmError) as refusal:
        helm.manifests(*settings)

    assert advice in " ".join(str(refusal.value).split())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("agnet.port=1", "additional properties 'agnet' not allowed"),
        ("agent.prot=1", "at '/agent': additional properties 'prot' not allowed"),
        ("agent.port=99999", "at '/agent/port': maximum: got 99,999, want 65,535"),
        ("agent.log.level=loud", "at '/agent/log/level': value must be one of 'debug'"),
        ("tls.source=vault", "at '/tls/source': value must be one of 'generated'"),
        ("agent.extraCapabilities={CAP_SYS_RESOURCE}", "at '/agent/extraCapabilities/0': 'not'"),
        ("operator.image.digest=latest", "at '/operator/image/digest': 'latest' does not match"),
        ("agent.hostNetns=netns", "at '/agent/hostNetns': 'netns' does not match pattern"),
        (
            "agent.objectCache.hostPath=cache",
            "at '/agent/objectCache/hostPath': 'cache' does not match pattern",
        ),
        ("operator.watchNamespaces={A_B}", "at '/operator/watchNamespaces/0': 'A_B' does not"),
        (
            "operator.nodeFiguresNamespaces={a*}",
            "at '/operator/nodeFiguresNamespaces/0': 'a*' does not",
        ),
    ],
)
def test_the_schema_names_what_is_wrong(helm: Helm, setting: str, complaint: str) -> None:
    with pytest.raises(HelmError) as refusal:
        helm.manifests(setting)

    assert complaint in str(refusal.value)


def test_a_parent_chart_may_have_globals_of_its_own(helm: Helm) -> None:
    helm.manifests("global.storageClass=fast")
