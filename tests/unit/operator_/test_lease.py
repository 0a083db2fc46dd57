"""A Lease over the API: created, read, and replaced by version."""

from __future__ import annotations

from typing import cast

import pytest

from latencyprobe_operator.kube.cluster import ApiError, Cluster, NotServedError
from latencyprobe_operator.kube.lease import FREE, ClusterLease, LeaseConflictError, LeaseRecord
from tests.unit.operator_.shared_lease import NOW, taken_by
from tools.fakes.api import FakeApi

NAMESPACE, NAME = "latencyprobe-system", "latencyprobe-operator"
LIMIT_S = 10.0


def lease_of(cluster: Cluster) -> ClusterLease:
    """The operators' Lease."""
    return ClusterLease(cluster, NAMESPACE, NAME)


async def test_a_lease_that_does_not_exist_is_created() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        lease = lease_of(cluster)
        assert await lease.read(limit_s=LIMIT_S) is None

        written = await lease.write(taken_by("a"), limit_s=LIMIT_S)

        assert (written.holder, written.transitions) == ("a", 1)
        assert api.leases[NAME]["spec"] == {
            "holderIdentity": "a",
            "leaseDurationSeconds": 15,
            "leaseTransitions": 1,
            "acquireTime": "2026-01-02T03:04:05.500000Z",
            "renewTime": "2026-01-02T03:04:05.500000Z",
        }
        assert await lease.read(limit_s=LIMIT_S) == written


async def test_a_renewal_keeps_what_others_have_written_beside_the_spec() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        lease = lease_of(cluster)
        record = await lease.write(taken_by("a"), limit_s=LIMIT_S)
        api.leases[NAME]["metadata"]["labels"] = {"team": "network"}
        api.leases[NAME]["spec"]["strategy"] = "OldestEmulationVersion"
        record = await lease.read(limit_s=LIMIT_S) or FREE

        await lease.write(record.renew(NOW + 2), limit_s=LIMIT_S)

        assert api.leases[NAME]["metadata"]["labels"] == {"team": "network"}
        spec = api.leases[NAME]["spec"]
        assert spec["strategy"] == "OldestEmulationVersion"
        assert spec["acquireTime"] < spec["renewTime"] == "2026-01-02T03:04:07.500000Z"


async def test_of_two_writers_of_one_version_one_has_a_conflict() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        lease = lease_of(cluster)
        record = await lease.write(taken_by("a"), limit_s=LIMIT_S)
        await lease.write(taken_by("b", record), limit_s=LIMIT_S)

        with pytest.raises(LeaseConflictError):
            await lease.write(record.renew(NOW), limit_s=LIMIT_S)
        assert api.leases[NAME]["spec"]["holderIdentity"] == "b"


async def test_of_two_creators_one_has_a_conflict() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        await lease_of(cluster).write(taken_by("a"), limit_s=LIMIT_S)

        with pytest.raises(LeaseConflictError):
            await lease_of(cluster).write(taken_by("b"), limit_s=LIMIT_S)


async def test_a_deleted_lease_is_a_conflict_to_its_holder() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        record = await lease_of(cluster).write(taken_by("a"), limit_s=LIMIT_S)
        api.leases.clear()

        with pytest.raises(LeaseConflictError):
            await lease_of(cluster).write(record.renew(NOW), limit_s=LIMIT_S)


async def test_a_released_lease_keeps_its_transitions() -> None:
    api = FakeApi()
    async with api.serve() as cluster:
        record = await lease_of(cluster).write(taken_by("a"), limit_s=LIMIT_S)

        released = await lease_of(cluster).write(record.release(NOW), limit_s=LIMIT_S)

        assert (released.holder, released.transitions) == ("", 1)


async def test_a_refusal_is_an_error_of_the_api() -> None:
    api = FakeApi(refuse=(403, "leases is forbidden"))
    async with api.serve() as cluster:
        with pytest.raises(ApiError, match="leases is forbidden"):
            await lease_of(cluster).read(limit_s=LIMIT_S)


async def test_a_server_that_does_not_serve_leases_yet_has_not_deleted_one() -> None:
    class Starting:
        async def call_leases(self, *_: object) -> None:
            raise NotServedError(404, "", "404 page not found")

    lease = lease_of(cast(Cluster, Starting()))
    with pytest.raises(NotServedError):
        await lease.read(limit_s=LIMIT_S)
    held = taken_by("a", LeaseRecord("a", 15, 7, body={"metadata": {"resourceVersion": "5"}}))
    with pytest.raises(NotServedError):
        await lease.write(held, limit_s=LIMIT_S)
