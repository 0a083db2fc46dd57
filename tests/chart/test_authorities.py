"""Each side trusts the other's authority alone: a stolen key of one is of no use as the other."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe_agent.serving.tls_proxy import TlsRefusal
from tests.chart.mutual_tls import mount, served
from tests.chart.upgrades import SECRETS, Cluster, Secrets, authorities, keys

NAMES = {"operator": OPERATOR_NAME, "agent": AGENT_NAME}


def secret_of(secrets: Secrets, component: str) -> dict[str, Any]:
    return secrets[SECRETS[component]]


def store_one_authority(cluster: Cluster) -> Secrets:
    """Have the Secrets be as a release with one authority for both sides left them.

    As of all certificates of Helm's functions, the usage of each is client and server.
    """
    cluster.upgrade()
    authority = Authority()
    for component, name in NAMES.items():
        secret = secret_of(cluster.secrets, component)
        made = authority.issue(name, server=True, client=True, days=365)
        texts = (authority.credential.certificate_pem, made.certificate_pem, made.key_pem)
        annotations = dict(secret["metadata"]["annotations"])
        del annotations["latencyprobe.io/authorities"]
        cluster.store(
            secret
            | {
                "metadata": secret["metadata"] | {"annotations": annotations},
                "data": {
                    key: base64.b64encode(text).decode()
                    for key, text in zip(("ca.crt", "tls.crt", "tls.key"), texts, strict=True)
                },
            }
        )
    return dict(cluster.secrets)


def certificate_of(secrets: Secrets, component: str) -> x509.Certificate:
    pem = base64.b64decode(secret_of(secrets, component)["data"]["tls.crt"])
    return x509.load_pem_x509_certificate(pem)


def trusted(secrets: Secrets, component: str) -> PolicyBuilder:
    """A verification by the authorities in the ca.crt of this side."""
    roots = [
        x509.load_pem_x509_certificate(pem.encode()) for pem in authorities(secrets, component)
    ]
    return PolicyBuilder().store(Store(roots))


def agents_accept_client(secrets: Secrets, client: x509.Certificate) -> bool:
    try:
        trusted(secrets, "agent").build_client_verifier().verify(client, [])
    except VerificationError:
        return False
    return True


def operator_accepts_server(secrets: Secrets, server: x509.Certificate, name: str) -> bool:
    try:
        verifier = trusted(secrets, "operator").build_server_verifier(x509.DNSName(name))
        verifier.verify(server, [])
    except VerificationError:
        return False
    return True


def install(cluster: Cluster) -> list[Secrets]:
    return [cluster.upgrade()]


def rotate(cluster: Cluster) -> list[Secrets]:
    return [cluster.upgrade(), cluster.upgrade("tls.generated.rotation=now")]


def revoke(cluster: Cluster) -> list[Secrets]:
    return [cluster.upgrade(), cluster.upgrade("tls.generated.revocation=stolen")]


def upgrade_from_one_authority(cluster: Cluster) -> list[Secrets]:
    return [store_one_authority(cluster), cluster.upgrade()]


def rotate_from_one_authority(cluster: Cluster) -> list[Secrets]:
    return [store_one_authority(cluster), cluster.upgrade("tls.generated.rotation=now")]


@pytest.mark.parametrize(
    "history",
    [install, rotate, revoke, upgrade_from_one_authority, rotate_from_one_authority],
)
def test_no_certificate_of_one_side_passes_for_the_other(
    cluster: Cluster, history: Callable[[Cluster], list[Secrets]]
) -> None:
    made = history(cluster)
    now = made[-1]

    assert agents_accept_client(now, certificate_of(now, "operator"))
    assert operator_accepts_server(now, certificate_of(now, "agent"), AGENT_NAME)
    for secrets in made:
        assert not agents_accept_client(now, certificate_of(secrets, "agent"))
        operator = certificate_of(secrets, "operator")
        assert not operator_accepts_server(now, operator, OPERATOR_NAME)


def test_with_one_authority_each_certificate_passed_for_the_other(cluster: Cluster) -> None:
    old = store_one_authority(cluster)

    assert agents_accept_client(old, certificate_of(old, "agent"))
    assert operator_accepts_server(old, certificate_of(old, "operator"), OPERATOR_NAME)


@pytest.mark.parametrize("settings", [(), ("tls.generated.rotation=now",)])
def test_the_one_authority_of_earlier_releases_is_replaced_once(
    cluster: Cluster, settings: tuple[str, ...]
) -> None:
    old = store_one_authority(cluster)
    upgraded = cluster.upgrade(*settings)

    assert keys(upgraded).isdisjoint(keys(old))
    for component in SECRETS:
        (new,) = authorities(upgraded, component)
        assert new not in authorities(old, component)
    assert cluster.upgrade(*settings) == upgraded


def age(cluster: Cluster, share: float) -> Secrets:
    """Have the certificates be of this share of their life."""
    passed = datetime.timedelta(days=365) * share
    issued = datetime.datetime.now(datetime.UTC) - passed
    for component in SECRETS:
        annotations = secret_of(cluster.secrets, component)["metadata"]["annotations"]
        annotations["latencyprobe.io/issued"] = f"{issued.timestamp():.0f}"
    return dict(cluster.secrets)


def test_certificates_in_their_second_third_are_kept_byte_for_byte(cluster: Cluster) -> None:
    cluster.upgrade()
    younger = age(cluster, 0.65)

    assert cluster.upgrade() == younger


def test_certificates_in_their_last_third_are_renewed(cluster: Cluster) -> None:
    cluster.upgrade()
    older = age(cluster, 0.68)
    renewed = cluster.upgrade()

    assert keys(renewed).isdisjoint(keys(older))
    for component in SECRETS:
        assert authorities(renewed, component)[1:] == authorities(older, component)


def test_a_revocation_that_reached_one_secret_is_finished_by_the_next_upgrade(
    cluster: Cluster,
) -> None:
    first = cluster.upgrade()
    for done in SECRETS:
        cluster.store(*first.values())
        halfway = cluster.upgrade("tls.generated.revocation=stolen")
        other = next(component for component in SECRETS if component != done)
        cluster.store(secret_of(first, other))
        revoked = cluster.upgrade("tls.generated.revocation=stolen")
        assert keys(revoked).isdisjoint(keys(first) | keys(halfway))
        for component in SECRETS:
            assert len(authorities(revoked, component)) == 1


# ---------------------------------------------------------------- over the real TLS proxy


async def test_operator_and_agent_know_each_other_by_generated_certificates(
    cluster: Cluster, tmp_path: Path
) -> None:
    secrets = cluster.upgrade()
    files = {side: mount(secret_of(secrets, side), tmp_path / side) for side in SECRETS}

    async with served(files["agent"], tmp_path) as agent:
        assert await agent.admits(files["operator"])
        assert agent.refused == []


async def test_an_agents_certificate_is_refused_by_its_authority(
    cluster: Cluster, tmp_path: Path
) -> None:
    secrets = cluster.upgrade()
    files = {side: mount(secret_of(secrets, side), tmp_path / side) for side in SECRETS}
    ca, _, _ = files["operator"]
    _, certificate, key = files["agent"]

    async with served(files["agent"], tmp_path) as agent:
        assert not await agent.admits((ca, certificate, key))
        # Neither by its name nor by its usage, which are checked later.
        assert set(agent.refused) == {TlsRefusal.FOREIGN}


async def test_the_operators_certificate_is_no_servers(cluster: Cluster, tmp_path: Path) -> None:
    secrets = cluster.upgrade()
    files = {side: mount(secret_of(secrets, side), tmp_path / side) for side in SECRETS}
    ca, _, _ = files["agent"]
    _, certificate, key = files["operator"]

    async with served((ca, certificate, key), tmp_path) as impostor:
        assert not await impostor.admits(files["operator"], name=OPERATOR_NAME)
        assert set(impostor.refused) == {TlsRefusal.NO_TLS}


@pytest.mark.parametrize("first", SECRETS)
async def test_both_sides_change_over_from_one_authority_without_a_restart(
    cluster: Cluster, tmp_path: Path, first: str
) -> None:
    old = store_one_authority(cluster)
    files = {side: mount(secret_of(old, side), tmp_path / side) for side in SECRETS}
    new = cluster.upgrade()
    (second,) = SECRETS.keys() - {first}

    async with served(files["agent"], tmp_path) as agent:
        assert await agent.admits(files["operator"])
        mount(secret_of(new, first), tmp_path / first)
        assert not await agent.admits(files["operator"])  # until the other kubelet has followed
        mount(secret_of(new, second), tmp_path / second)
        assert await agent.admits(files["operator"])
        stolen = mount(secret_of(old, "operator"), tmp_path / "stolen")
        agent.refused.clear()
        assert not await agent.admits((files["operator"][0], *stolen[1:]))
        assert set(agent.refused) == {TlsRefusal.FOREIGN}
