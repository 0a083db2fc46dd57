"""kopf's first scan of the API: it goes on until LatencyProbes are found.

kopf 1.45 scans the API once, and scans again only when a CRD changes. An API server that starts
answers without the resources of CRDs that it has not read yet. With such an answer kopf would serve
no LatencyProbe until its end. No setting changes that, so kopf's function that scans is wrapped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from kopf._cogs.clients import scanning

from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_LOG_S = 60.0
# A page of a proxy in place of an answer ends in one of these.
_UNREADABLE = (ValueError, KeyError, TypeError, aiohttp.ClientResponseError)

Scan = Callable[..., Awaitable[Collection[Any]]]


@contextmanager
def patient_scans(group: str, plural: str) -> Iterator[None]:
    """Have kopf's first scan in the block wait for this resource."""
    impatient = scanning.scan_resources
    scanning.scan_resources = PatientScans(impatient, group, plural).scan
    try:
        yield
    finally:
        scanning.scan_resources = impatient


class PatientScans:
    """All scans of kopf, of which the first one ends once it finds a resource."""

    def __init__(self, scan: Scan, group: str, plural: str) -> None:
        self._scan = scan
        self._group = group
        self._plural = plural
        self._is_found = False
        self._lines = RepeatedLines(log, clock=_clock)

    async def scan(self, **options: Any) -> Collection[Any]:
        """Scan, and again until the resource is found. Later scans report what there is."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                resources = await self._scan(**options)
            except _UNREADABLE as error:
                self._note("unreadable", f"cannot read the resources of the API: {error!r}")
            else:
                self._is_found = self._is_found or any(map(self._is_wanted, resources))
                if self._is_found:
                    return resources
                self._note(
                    "missing",
                    f"the API server does not serve {self._plural}.{self._group}: it is starting, "
                    "or the CRD is not installed; it is asked again",
                )
            await asyncio.sleep(backoff.next())

    def _note(self, kind: str, text: str) -> None:
        self._lines.note(kind, text, interval_s=_LOG_S)

    def _is_wanted(self, resource: Any) -> bool:
        return (resource.group, resource.plural) == (self._group, self._plural)


def _clock() -> float:
    return asyncio.get_running_loop().time()
