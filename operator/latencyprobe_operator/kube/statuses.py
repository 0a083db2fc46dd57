"""Statuses of LatencyProbes, written by the leader alone.

Two things keep an operator that is not the leader any more from writing: `leading`, and the
resourceVersion that each patch was made from. After another operator has written, the API server
refuses the patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from latencyprobe_operator.kube.cluster import ApiError, Cluster, Json, NotServedError
from latencyprobe_operator.kube.leading import while_leading


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
        try:
            return await while_leading(
                self._remaining_s, partial(self._cluster.patch_status, namespace, name, patch)
            )
        except ApiError as error:
            if error.status != 409:
                raise
        raise StatusConflictError(await self._read(namespace, name))

    async def _read(self, namespace: str, name: str) -> Json | None:
        try:
            return await self._cluster.read_probe(namespace, name)
        except ApiError as error:
            if error.status == 404 and not isinstance(error, NotServedError):
                return None
            raise
