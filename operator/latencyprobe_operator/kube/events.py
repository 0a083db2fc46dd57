"""Events in the API server, written by the leader alone, and only where it may.

Events are a help and no more. So a failure to write one never holds up anything else.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any

from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, Cluster
from latencyprobe_operator.kube.leading import NotLeadingError, while_leading

log = logging.getLogger(__name__)

# Without the right, it is tried again after this time: a role may be extended.
_REFUSED_S = 600.0
# Statuses wait for this.
_LIMIT_S = 5.0


class EventOutcome(Enum):
    """The outcome of a write."""

    WRITTEN = auto()
    FAILED = auto()
    """Another attempt may succeed."""
    REFUSED = auto()
    """No attempt of this write will succeed."""


class Events:
    """The Events of all probes. `remaining_s`: the rest of the Lease; 0: not held."""

    def __init__(
        self, cluster: Cluster, remaining_s: Callable[[], float] = lambda: math.inf
    ) -> None:
        self._cluster = cluster
        self._remaining_s = remaining_s
        self._refused_until = -math.inf
        self._is_refusal_logged = False

    async def create(self, namespace: str, body: Mapping[str, Any]) -> EventOutcome:
        """Write a new Event."""
        return await self._write(partial(self._cluster.create_event, namespace, body))

    async def extend(self, namespace: str, name: str, series: Mapping[str, Any]) -> EventOutcome:
        """Write the series of an Event."""
        return await self._write(partial(self._cluster.patch_event, namespace, name, series))

    async def _write(self, request: Callable[[], Awaitable[None]]) -> EventOutcome:
        if _now() < self._refused_until:
            return EventOutcome.REFUSED
        try:
            async with asyncio.timeout(_LIMIT_S):
                await while_leading(self._remaining_s, request)
        except ApiError as error:
            return self._take_refusal(error)
        except (NotLeadingError, *UNAVAILABLE):
            return EventOutcome.FAILED
        self._is_refusal_logged = False
        return EventOutcome.WRITTEN

    def _take_refusal(self, error: ApiError) -> EventOutcome:
        if error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= 500:
            return EventOutcome.FAILED
        if error.status == HTTPStatus.FORBIDDEN and not _is_about_namespace(error):
            self._refused_until = _now() + _REFUSED_S
            if not self._is_refusal_logged:
                self._is_refusal_logged = True
                log.warning(
                    "cannot write Events, which needs create and patch of events in events.k8s.io: "
                    "%s. All else works",
                    error,
                )
        elif error.status != HTTPStatus.NOT_FOUND:
            log.debug("an Event is refused: %s", error)
        return EventOutcome.REFUSED


def _is_about_namespace(error: ApiError) -> bool:
    """Decide whether a namespace takes no new objects, since it is being deleted.

    NamespaceLifecycle, apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go.
    """
    return "being terminated" in str(error)


def _now() -> float:
    return asyncio.get_running_loop().time()
