"""What an upgrade makes of the certificates that it finds in the cluster."""

from __future__ import annotations

from tests.chart.upgrades import SECRETS, Cluster, authorities, keys


def test_an_upgrade_without_a_change_keeps_everything(cluster: Cluster) -> None:
    first = cluster.upgrade()
    assert cluster.upgrade() == first
    assert len(authorities(first, "agent")) == 1


def test_a_rotation_goes_on_trusting_the_authority_before(cluster: Cluster) -> None:
    first = cluster.upgrade()
    rotated = cluster.upgrade("tls.generated.rotation=now")
    assert keys(first).isdisjoint(keys(rotated))
    for component in SECRETS:
        new, *before = authorities(rotated, component)
        assert before == authorities(first, component)
        assert new not in before


def test_one_revocation_stops_trusting_every_authority_before(cluster: Cluster) -> None:
    first = cluster.upgrade()
    rotated = cluster.upgrade("tls.generated.rotation=now")
    settings = ("tls.generated.rotation=now", "tls.generated.revocation=stolen")
    revoked = cluster.upgrade(*settings)
    assert keys(revoked).isdisjoint(keys(first) | keys(rotated))
    for component in SECRETS:
        (new,) = authorities(revoked, component)
        assert new not in authorities(rotated, component)
    assert cluster.upgrade(*settings) == revoked
