"""Writes of a probe's status: only the differences to one version, and with back-off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from latencyprobe.process.backoff import Backoff
from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.api.timestamps import epoch_s
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError
from latencyprobe_operator.kube.statuses import NotLeadingError, StatusConflictError
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.byte_budget import ByteBudget
from latencyprobe_operator.probes.document import Document, merge_patch, size_bytes, turning_points
from latencyprobe_operator.probes.status_news import differs, light

log = logging.getLogger(__name__)

# The greatest age of lastReportTime while nothing else changes.
_STALE_S = 60.0

PatchStatus = Callable[[str, str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""As `Statuses.patch`: merges into the status of a LatencyProbe; returns the object."""


class StatusWriter:
    """The status of one probe in the API server, and the writes to it."""

    def __init__(
        self,
        key: ProbeKey,
        body: Mapping[str, Any],
        *,
        patch_status: PatchStatus,
        metrics: OperatorMetrics,
    ) -> None:
        self.previous: Document = dict(body.get("status") or {})
        """The status as it stands in the API server."""
        self._stored = self.previous
        self._version: str | None = body["metadata"].get("resourceVersion")
        self.phase = str(Phase.PENDING)
        """The phase that was written last."""
        self.last_write: float | None = None
        """The time of the last write, by the event loop's clock."""
        self._key = key
        self._patch_status = patch_status
        self._metrics = metrics
        self._backoff = Backoff(0.5, 10)
        self._budget = ByteBudget(lambda: asyncio.get_running_loop().time())

    def see(self, body: Mapping[str, Any]) -> None:
        """Take in the object as the API server has it, unless it is older than the known one."""
        version = body["metadata"].get("resourceVersion")
        if _is_newer(version, self._version):
            self._take(body)

    def _take(self, body: Mapping[str, Any]) -> None:
        self._version = body.get("metadata", {}).get("resourceVersion", self._version)
        stored: Document = dict(body.get("status") or {})
        if stored != self._stored:
            self.previous = self._stored = stored

    def describes(self, generation: int) -> bool:
        """Decide whether the status has the figures of this generation, while it is measured."""
        measures = self.previous.get("phase") in (Phase.RUNNING, Phase.DEGRADED)
        return measures and self.previous.get("observedGeneration") == generation

    def turns(self, document: Document) -> bool:
        """Decide whether people wait for this change."""
        return turning_points(document) != turning_points(self.previous)

    def worth_writing(self, document: Document) -> Document | None:
        """Return the part of the document that is worth a write now; None without such a part.

        Beyond the budget, and if there is no news, the pods stay as they were written.
        """
        turns = self.turns(document)
        differing = turns or differs(self.previous, document)
        if differing and self._budget.has(size_bytes(merge_patch(self.previous, document))):
            return document
        part = light(self.previous, document)
        if turns or self._is_stale(document) or (differing and differs(self.previous, part)):
            return part
        return None

    def _is_stale(self, document: Document) -> bool:
        written, known = self.previous.get("lastReportTime"), document.get("lastReportTime")
        if not known or known == written:
            return False
        return not written or epoch_s(known) - epoch_s(written) >= _STALE_S

    async def write(self, document: Document) -> float | None:
        """Write the document; return the seconds until another attempt, or None without one."""
        patch = merge_patch(self.previous, document)
        self._budget.take(size_bytes(patch))
        # The API server refuses the write to a later object of the same name, by the UID, and to
        # one that another operator has written meanwhile, by the version.
        metadata = {"uid": self._key.uid}
        if self._version:
            metadata["resourceVersion"] = self._version
        body = {"metadata": metadata, "status": patch}
        try:
            answer = await self._patch_status(self._key.namespace, self._key.name, body)
        except StatusConflictError as error:
            return self._decide_again(error.current)
        except NotLeadingError as error:
            return self._fail(error, transient=True)
        except ApiError as error:
            if error.status == 404:
                return None  # deleted; the watch reports it soon
            return self._fail(error, transient=error.status == 429 or error.status >= 500)
        except UNAVAILABLE as error:
            return self._fail(error, transient=True)
        self._metrics.status_writes.inc()
        self._backoff.reset()
        self._take(answer)
        self.previous = self._stored
        self.last_write = asyncio.get_running_loop().time()
        self.phase = str(self.previous.get("phase"))
        return None

    def _decide_again(self, current: Mapping[str, Any] | None) -> float | None:
        """Take in the object as it was changed; return the seconds until the next write."""
        if current is None or current["metadata"].get("uid") != self._key.uid:
            return None  # deleted; the watch reports it soon
        self._take(current)
        return self._backoff.next()

    def _fail(self, error: Exception, *, transient: bool) -> float:
        self._metrics.status_write_failures.inc()
        delay_s = self._backoff.next()
        log.log(
            logging.WARNING if transient else logging.ERROR,
            "%s: cannot write the status: %s; next attempt in %.1f s",
            self._key,
            str(error) or type(error).__name__,
            delay_s,
        )
        return delay_s


def _is_newer(version: str | None, known: str | None) -> bool:
    """Compare two versions of one object: decimal numbers, by the API's rules."""
    if not version or not known:
        return bool(version)
    return version.isdecimal() and known.isdecimal() and int(version) > int(known)
