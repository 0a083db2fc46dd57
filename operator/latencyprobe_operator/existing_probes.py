"""The LatencyProbes that exist when an operator begins to lead."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection

from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.kube.cluster import UNAVAILABLE, UNREADABLE, ApiError, Cluster

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LOG_S = 30.0


class ExistingProbes:
    """The list of all LatencyProbes of some namespaces; none named: of all."""

    def __init__(self, cluster: Cluster, namespaces: Collection[str]) -> None:
        self._cluster = cluster
        self._namespaces = namespaces
        self._lines = RepeatedLines(log, clock=_clock)

    async def uids(self, *, unserved_until: float = math.inf) -> set[str]:
        """Return the UIDs of those that are not being deleted, once the API server lists them.

        A server that starts or is upgraded answers as if there were no CRD. So that answer counts
        only at this time of the loop's clock: then there are no probes.
        """
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                return await self._list()
            except ApiError as error:
                if error.status == 404:
                    if _clock() >= unserved_until:
                        log.warning("the API server has not served LatencyProbes: no CRD exists")
                        return set()
                    self._note(
                        "unserved",
                        "the API server does not serve LatencyProbes: it is starting, or the CRD "
                        "is not installed; no agent is sent a state until it does",
                    )
                else:
                    self._note("refused", f"cannot list LatencyProbes: {error}")
            except UNAVAILABLE as error:
                text = str(error) or type(error).__name__
                self._note("unavailable", f"cannot reach the API server: {text}")
            except UNREADABLE as error:
                self._note("unreadable", f"cannot read the list of LatencyProbes: {error!r}")
            await asyncio.sleep(backoff.next())

    async def _list(self) -> set[str]:
        return {
            body["metadata"]["uid"]
            for namespace in self._namespaces or (None,)
            for body in await self._cluster.list_probes(namespace)
            if not body["metadata"].get("deletionTimestamp")
        }

    def _note(self, kind: str, text: str) -> None:
        self._lines.note(kind, text, interval_s=_LOG_S)


def _clock() -> float:
    return asyncio.get_running_loop().time()
