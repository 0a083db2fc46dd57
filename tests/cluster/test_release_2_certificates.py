"""The certificates that the chart generates: renewed when asked, and when their time comes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from latencyprobe.commands.pki import Authority, Credential
from tests.cluster.agents_tls import node_name, wait_until_served
from tests.cluster.release import NAMESPACES, Release
from tests.cluster.shop import Shop
from tools.helm.chart import RELEASE

DAY = timedelta(days=1)  # the shortest lifetime that the chart gives
IN_ITS_SECOND_THIRD = timedelta(hours=15)
IN_ITS_LAST_THIRD = timedelta(hours=17)
PEERS = {"operator": "agent", "agent": "operator"}
PURPOSES = {"operator": ExtendedKeyUsageOID.CLIENT_AUTH, "agent": ExtendedKeyUsageOID.SERVER_AUTH}

Secrets = dict[str, dict[str, bytes]]


def test_certificates_are_rotated_without_a_restart(shop: Shop) -> None:
    release = shop.release
    shop.wait_until_both_nodes_report()
    running = release.restarts()
    old = _secrets(release)

    release.upgrade("tls.generated.rotation=anew")

    _wait_until_taken_in(release, renewed_from=old)
    shop.wait_until_both_nodes_report()
    assert release.restarts() == running

    # The next connection is made with the new ones on both sides.
    shop.restart_agent(shop.cluster.nodes[0])


def test_an_upgrade_renews_certificates_in_the_last_third_of_their_time(shop: Shop) -> None:
    release = shop.release
    shop.wait_until_both_nodes_report()
    running = release.restarts()
    younger = _put_certificates_of_age(release, IN_ITS_SECOND_THIRD)
    release.upgrade("tls.generated.days=1")
    assert _secrets(release) == younger
    older = _put_certificates_of_age(release, IN_ITS_LAST_THIRD)

    release.upgrade("tls.generated.days=1")

    _wait_until_taken_in(release, renewed_from=older)
    shop.wait_until_both_nodes_report()
    assert release.restarts() == running
    for secret in _secrets(release).values():
        assert DAY * 0.9 < _certificate(secret).not_valid_after_utc - datetime.now(UTC) <= DAY


def _secrets(release: Release) -> Secrets:
    return {component: release.secret(component) for component in NAMESPACES}


def _certificate(secret: dict[str, bytes]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(secret["tls.crt"])


def _wait_until_taken_in(release: Release, *, renewed_from: Secrets) -> None:
    """Wait until every agent has its new certificate and takes the operator's new one."""
    new = _secrets(release)
    for component, secret in new.items():
        assert secret["tls.crt"] != renewed_from[component]["tls.crt"]
        authority, before = x509.load_pem_x509_certificates(new[PEERS[component]]["ca.crt"])
        _certificate(secret).verify_directly_issued_by(authority)
        _certificate(renewed_from[component]).verify_directly_issued_by(before)
    expected = _certificate(new["agent"])
    for node, pod in release.agents().items():
        address = pod["status"]["podIP"]
        wait_until_served(node, address, lambda served: served == expected)
        assert node_name(address, new["operator"]) == node


def _put_certificates_of_age(release: Release, age: timedelta) -> Secrets:
    """Have the Secrets be as an install with `tls.generated.days=1` left them that long ago."""
    authorities = {component: Authority() for component in NAMESPACES}
    issued = datetime.now(UTC) - age
    for component, authority in authorities.items():
        made = _issue(component, authority.credential, issued)
        trusted = authorities[PEERS[component]].credential
        trusted_before = release.secret(component)["ca.crt"]
        texts = {
            "ca.crt": trusted.certificate_pem + _first(trusted_before),
            "tls.crt": made.certificate_pem,
            "tls.key": made.key_pem,
        }
        _replace(release, component, texts, issued)
    return _secrets(release)


def _replace(release: Release, component: str, texts: dict[str, bytes], issued: datetime) -> None:
    """As Helm does it, which would not overwrite what another has applied."""
    place = f"--namespace={NAMESPACES[component]}"
    secret = release.cluster.get("secret", f"{RELEASE}-{component}-tls", place)
    for field in ("creationTimestamp", "resourceVersion", "uid"):
        del secret["metadata"][field]
    secret["metadata"]["annotations"]["latencyprobe.io/issued"] = f"{issued.timestamp():.0f}"
    secret["data"] = {name: base64.b64encode(text).decode() for name, text in texts.items()}
    release.cluster.kubectl(
        *("apply", "--server-side", "--field-manager=helm", "--filename=-"),
        stdin=json.dumps(secret),
    )


def _issue(component: str, authority: Credential, issued: datetime) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.SubjectAlternativeName([x509.DNSName(f"{component}.latencyprobe.io")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issued)
        .not_valid_after(issued + DAY)
        .add_extension(x509.ExtendedKeyUsage([PURPOSES[component]]), critical=False)
        .add_extension(name, critical=False)
        # OpenSSL tells authorities of one name apart by it, and tries no second one.
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return Credential(signed, key)


def _first(authorities: bytes) -> bytes:
    end = b"-----END CERTIFICATE-----\n"
    return authorities.partition(end)[0] + end
