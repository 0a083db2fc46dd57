"""One Lease (coordination.k8s.io/v1): read, created, and replaced by its resourceVersion."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latencyprobe_operator.kube.cluster import ApiError, Cluster, Json, NotServedError

# The API's field has 32 bits.
MAX_TRANSITIONS = 2**31 - 1


class LeaseConflictError(Exception):
    """Another client has changed, created or deleted the Lease since it was read."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The spec of a Lease. Equal records differ at most in the other parts of the object.

    `holder`: empty if the Lease is free. `renewed`, `acquired`: by the holder's wall clock, for
    people alone.
    """

    holder: str
    duration_s: int
    transitions: int
    acquired: str = ""
    renewed: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The object that this was read from."""

    def renew(self, now: float) -> LeaseRecord:
        """Return the record renewed at this time, in seconds since the epoch."""
        return replace(self, renewed=_micro_time(now))

    def acquire(self, holder: str, duration_s: int, transitions: int, *, now: float) -> LeaseRecord:
        """Return the record as another holder takes it."""
        time = _micro_time(now)
        return LeaseRecord(holder, duration_s, transitions, time, time, self.body)

    def release(self, now: float) -> LeaseRecord:
        """Return the record without a holder; the transitions stay, since terms must grow."""
        return replace(self, holder="", duration_s=1, renewed=_micro_time(now))


FREE = LeaseRecord(holder="", duration_s=0, transitions=0)
"""The record of a Lease that does not exist."""


class ClusterLease:
    """A Lease of one name. All calls raise ApiError and one of `cluster.UNAVAILABLE`."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.namespace, self.name = namespace, name
        self._cluster = cluster
        self._collection = f"{namespace}/leases"
        self._path = f"{namespace}/leases/{name}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    async def read(self, *, limit_s: float) -> LeaseRecord | None:
        """Read the Lease; None if it does not exist."""
        try:
            async with asyncio.timeout(limit_s):
                return _record(await self._cluster.call_leases("GET", self._path))
        except ApiError as error:
            if error.status == 404 and not isinstance(error, NotServedError):
                return None
            raise

    async def write(self, record: LeaseRecord, *, limit_s: float) -> LeaseRecord:
        """Create the Lease, or replace the version that this record was read from.

        Returns it as it is then; raises LeaseConflictError if it is no longer that version.
        """
        metadata = record.body.get("metadata")
        method, path = ("PUT", self._path) if metadata else ("POST", self._collection)
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata or {"name": self.name, "namespace": self.namespace},
            "spec": {**record.body.get("spec", {}), **_spec(record)},
        }
        try:
            async with asyncio.timeout(limit_s):
                return _record(await self._cluster.call_leases(method, path, body))
        except NotServedError:
            raise
        except ApiError as error:
            # 404: deleted since; a missing namespace has the same status.
            if error.status == 409 or (error.status == 404 and metadata):
                raise LeaseConflictError(str(error)) from error
            raise


def _record(body: Json) -> LeaseRecord:
    spec = body.get("spec") or {}
    return LeaseRecord(
        holder=spec.get("holderIdentity") or "",
        duration_s=spec.get("leaseDurationSeconds") or 0,
        transitions=spec.get("leaseTransitions") or 0,
        acquired=spec.get("acquireTime") or "",
        renewed=spec.get("renewTime") or "",
        body=body,
    )


def _spec(record: LeaseRecord) -> Json:
    spec: Json = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.duration_s,
        "leaseTransitions": record.transitions,
        "renewTime": record.renewed,
    }
    return {**spec, "acquireTime": record.acquired} if record.acquired else spec


def _micro_time(now: float) -> str:
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
