"""Statuses of LatencyProbes, written by the leader alone.

Two things keep an operator that is not the leader any more from writing. A request begins, and is
waited for, only while the Lease is held. And each patch names the resourceVersion that it was made
from: after another operator has written, the API server refuses it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

from latencyprobe_operator.kube.cluster import ApiError, Cluster, Json


class NotLeadingError(Exception):
    """A write by an operator that does not hold the Lease, or has not renewed it in time."""

    def __init__(self) -> None:
        super().__init__("this operator has not renewed its Lease in time")


class StatusConflictError(Exception):
    """A patch of an older version. `current`: the object as it is; None if it is deleted."""

    def __init__(self, current: Json | None) -> None:
        self.current = current
        super().__init__("another client has changed the LatencyProbe")


class Statuses:
    """The statuses in the API server. `remaining_s`: the rest of the Lease; 0: not held."""

    def __init__(
        self, cluster: Cluster, remaining_s: Callable[[], float] = lambda: math.inf
    ) -> None:
        self._cluster = cluster
        self._remaining_s = remaining_s

    async def patch(self, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """Merge this into the status of a LatencyProbe; return the object as it is then.

        Raises NotLeadingError, StatusConflictError, ApiError, and one of `cluster.UNAVAILABLE`.
        """
        # Read first: a freeze between these lines then shortens the time that is left.
        now = asyncio.get_running_loop().time()
        remaining_s = self._remaining_s()
        if remaining_s <= 0:
            raise NotLeadingError
        try:
            # A process that was frozen here, and goes on after its Lease, cancels the request
            # before its task takes another step.
            async with asyncio.timeout_at(None if math.isinf(remaining_s) else now + remaining_s):
                return await self._cluster.patch_status(namespace, name, patch)
        except ApiError as error:
            if error.status != 409:
                raise
        raise StatusConflictError(await self._read(namespace, name))

    async def _read(self, namespace: str, name: str) -> Json | None:
        try:
            return await self._cluster.read_probe(namespace, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
