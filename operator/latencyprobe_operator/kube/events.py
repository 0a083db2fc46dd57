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

from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, Cluster
from latencyprobe_operator.kube.leading import NotLeadingError, while_leading

log = logging.getLogger(__name__)

# A refused namespace is tried again after this time: a role or a quota may be extended.
_REFUSED_S = 600.0
# Beyond this number of refused namespaces, the one that was refused first is tried again earlier.
_MOST_REFUSED = 1000
_LOG_S = 3600.0
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
        # By namespace, in the order of the times. A tenant's quota ends no other's Events.
        self._refused_until: dict[str, float] = {}
        self._lines = RepeatedLines(log, clock=_now)

    async def create(self, namespace: str, body: Mapping[str, Any]) -> EventOutcome:
        """Write a new Event."""
        return await self._write(namespace, partial(self._cluster.create_event, namespace, body))

    async def extend(self, namespace: str, name: str, series: Mapping[str, Any]) -> EventOutcome:
        """Write the series of an Event."""
        request = partial(self._cluster.patch_event, namespace, name, series)
        return await self._write(namespace, request)

    async def _write(self, namespace: str, request: Callable[[], Awaitable[None]]) -> EventOutcome:
        if _now() < self._refused_until.get(namespace, -math.inf):
            return EventOutcome.REFUSED
        try:
            async with asyncio.timeout(_LIMIT_S):
                await while_leading(self._remaining_s, request)
        except ApiError as error:
            return self._take_refusal(namespace, error)
        except (NotLeadingError, *UNAVAILABLE):
            return EventOutcome.FAILED
        return EventOutcome.WRITTEN

    def _take_refusal(self, namespace: str, error: ApiError) -> EventOutcome:
        if error.status == HTTPStatus.TOO_MANY_REQUESTS or error.status >= 500:
            return EventOutcome.FAILED
        if error.status == HTTPStatus.FORBIDDEN and not _is_about_namespace(error):
            self._note_refusal(namespace)
            self._lines.note(
                "refused",
                f"cannot write Events in namespace {namespace}, which needs create and patch of "
                "events in events.k8s.io, and no quota or webhook that forbids them: "
                f"{error}. All else works",
                interval_s=_LOG_S,
            )
        elif error.status != HTTPStatus.NOT_FOUND:
            log.debug("an Event is refused: %s", error)
        return EventOutcome.REFUSED

    def _note_refusal(self, namespace: str) -> None:
        refused, now = self._refused_until, _now()
        refused.pop(namespace, None)
        refused[namespace] = now + _REFUSED_S
        while len(refused) > _MOST_REFUSED or refused[next(iter(refused))] <= now:
            del refused[next(iter(refused))]


def _is_about_namespace(error: ApiError) -> bool:
    """Decide whether a namespace takes no new objects, since it is being deleted.

    NamespaceLifecycle, apiserver/pkg/admission/plugin/namespace/lifecycle/admission.go.
    """
    return "being terminated" in str(error)


def _now() -> float:
    return asyncio.get_running_loop().time()
