"""cert-manager: the real one issues what operator and agents use, and renews it in time."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from devcluster.cert_manager_programs import obtain
from devcluster.waiting import wait_until
from tests.cluster import cert_manager
from tests.cluster.agents_tls import node_name, wait_until_served
from tests.cluster.release import NAMESPACES, OPERATOR, Release
from tests.cluster.shop import Shop
from tools.helm.chart import CHART, NAMESPACE, RELEASE
from tools.progress import say_on_stderr

LIFETIME = timedelta(hours=1)  # cert-manager's webhook takes nothing shorter
RENEWED_AFTER = timedelta(seconds=30)
SETTINGS = (
    "tls.source=certManager",
    "tls.certManager.issuerRef.name=latencyprobe",
    f"tls.certManager.duration={LIFETIME.total_seconds():.0f}s",
    f"tls.certManager.renewBefore={(LIFETIME - RENEWED_AFTER).total_seconds():.0f}s",
)
USAGES = {"operator": ExtendedKeyUsageOID.CLIENT_AUTH, "agent": ExtendedKeyUsageOID.SERVER_AUTH}


@pytest.fixture(scope="module")
def certified(shop: Shop) -> Iterator[Release]:
    """The chart, installed with an issuer as its README has it, and measuring."""
    release = shop.release
    if release.is_installed:
        release.uninstall()
    cert_manager.install(release.cluster, release.helm, obtain(say_on_stderr))
    cert_manager.apply(release.cluster, _issuer_of_the_readme())
    release.install(*SETTINGS)
    shop.reopen()
    yield release
    release.uninstall()
    cert_manager.uninstall(release.cluster, release.helm)


def _issuer_of_the_readme() -> str:
    blocks: list[str] = re.findall(
        r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL
    )
    (issuer,) = (block for block in blocks if "kind: ClusterIssuer" in block)
    return textwrap.dedent(issuer)


@pytest.mark.parametrize("component", ["operator", "agent"])
def test_cert_manager_issues_the_certificates_that_the_chart_requests(
    certified: Release, component: str
) -> None:
    authority = _authority(certified)

    secret = certified.secret(component)

    assert x509.load_pem_x509_certificate(secret["ca.crt"]) == authority
    certificate = x509.load_pem_x509_certificate(secret["tls.crt"])
    certificate.verify_directly_issued_by(authority)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == LIFETIME
    extensions = certificate.extensions
    alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternatives) == [x509.DNSName(f"{component}.latencyprobe.io")]
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [USAGES[component]]


def _authority(release: Release) -> x509.Certificate:
    """The one that the README's issuer signs with."""
    certificate = release.cluster.secret(cert_manager.NAMESPACE, "latencyprobe-ca")["tls.crt"]
    return x509.load_pem_x509_certificate(certificate)


@pytest.mark.thorough  # test_release_2_certificates.py renews those that the chart generates
def test_renewed_certificates_are_taken_in_without_a_restart(
    certified: Release, shop: Shop
) -> None:
    shop.wait_until_both_nodes_report()
    running = certified.restarts()
    before = {component: _certificate(certified, component) for component in NAMESPACES}

    for component, certificate in before.items():
        _wait_until_renewed(certified, component, certificate)

    for node, pod in certified.agents().items():
        address = pod["status"]["podIP"]
        wait_until_served(node, address, lambda served: _is_newer(served, before["agent"]))
        assert node_name(address, certified.secret("operator")) == node
    _wait_until_the_operator_noticed(certified)
    shop.wait_until_both_nodes_report()
    assert certified.restarts() == running

    # The next connection is made with the new ones on both sides.
    shop.restart_agent(shop.cluster.nodes[0])


def _certificate(release: Release, component: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(release.secret(component)["tls.crt"])


def _is_newer(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.not_valid_before_utc > other.not_valid_before_utc


def _wait_until_renewed(release: Release, component: str, before: x509.Certificate) -> None:
    name, namespace = f"{RELEASE}-{component}-tls", NAMESPACES[component]

    def unmet() -> str | None:
        if _is_newer(_certificate(release, component), before):
            return None
        return str(release.cluster.get("certificate", name, f"--namespace={namespace}")["status"])

    seconds = 3 * RENEWED_AFTER.total_seconds()
    wait_until(f"a new certificate of the {component}", unmet, seconds=seconds)


def _wait_until_the_operator_noticed(release: Release) -> None:
    def unmet() -> str | None:
        logged = release.cluster.kubectl(
            "logs", f"--namespace={NAMESPACE}", f"--selector={OPERATOR}", "--tail=-1"
        )
        return None if "certificates renewed" in logged else logged[-500:]

    wait_until("the operator to see its new certificate", unmet, seconds=60)
