"""Writes of a probe's status: only the differences to one version, and with back-off.

Rows that the API server refuses are left out, so that one row never holds up the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from latencyprobe.printable import bounded
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe_operator.api.spec import ProbeKey
from latencyprobe_operator.api.status_fields import Phase
from latencyprobe_operator.api.timestamps import epoch_s
from latencyprobe_operator.kube.cluster import UNAVAILABLE, ApiError, NotServedError
from latencyprobe_operator.kube.leading import NotLeadingError
from latencyprobe_operator.kube.statuses import StatusConflictError
from latencyprobe_operator.metrics import OperatorMetrics
from latencyprobe_operator.probes.byte_budget import (
    LIGHT_BURST_BYTES,
    LIGHT_BYTES_PER_MINUTE,
    ByteBudget,
)
from latencyprobe_operator.probes.document import (
    HEAVY,
    MAX_BYTES,
    Document,
    KeptDocument,
    merge_patch,
    size_bytes,
    turning_points,
)
from latencyprobe_operator.probes.facts import PodFacts
from latencyprobe_operator.probes.first_rows import FirstRows, rows_of, rows_of_facts
from latencyprobe_operator.probes.refused_rows import without_refused, without_rows
from latencyprobe_operator.probes.row_bytes import RowBytes
from latencyprobe_operator.probes.status_news import differs, light, without_nodes

log = logging.getLogger(__name__)

_IDLE = frozenset({Phase.SUSPENDED, Phase.COMPLETED})

# The greatest age of lastReportTime and measuredSeconds while nothing else changes.
_STALE_S = 60.0
# A status that is refused, or cannot be sent, is followed by others like it.
_FAILURE_LOG_S = 60.0
# The API server names each value that it refuses, and quotes it.
_LONGEST_REFUSAL = 1000

PatchStatus = Callable[[str, str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""As `Statuses.patch`: merges into the status of a LatencyProbe; returns the object."""


class _Patch(NamedTuple):
    """The patch from the status in the API server to a document, and its size in bytes."""

    document: Document
    content: Document
    size: int


class StatusWriter:
    """The status of one probe in the API server, and the writes to it.

    Large, because the decision on a write needs the version, the patch and both budgets.
    """

    def __init__(
        self,
        key: ProbeKey,
        body: Mapping[str, Any],
        *,
        patch_status: PatchStatus,
        metrics: OperatorMetrics,
    ) -> None:
        self._kept = KeptDocument(body.get("status") or {})
        self._patch: _Patch | None = None
        self._version: str | None = body["metadata"].get("resourceVersion")
        self.phase = str(Phase.PENDING)
        """The phase that was written last."""
        self.last_write: float | None = None
        """The time of the last write, by the event loop's clock."""
        self._key = key
        self._patch_status = patch_status
        self._metrics = metrics
        self._backoff = Backoff(0.5, 10)
        self._failures = RepeatedLines(log)
        self._budget = ByteBudget(_clock)
        self._light_budget = ByteBudget(
            _clock, per_minute=LIGHT_BYTES_PER_MINUTE, burst=LIGHT_BURST_BYTES, debt=0
        )
        self._rows = RowBytes()

    @property
    def previous(self) -> Document:
        """The status as it stands in the API server."""
        return self._kept.whole()

    @property
    def outline(self) -> Document:
        """The same without its rows of pods and nodes."""
        return self._kept.outline

    def see(self, body: Mapping[str, Any]) -> None:
        """Take in the object as the API server has it, unless it is older than the known one."""
        version = body["metadata"].get("resourceVersion")
        if _is_newer(version, self._version):
            self._take(body)
            self._rows.forget()

    def _take(self, body: Mapping[str, Any]) -> None:
        self._version = body.get("metadata", {}).get("resourceVersion", self._version)
        self._kept = KeptDocument(body.get("status") or {})
        self._patch = None

    def describes(self, generation: int) -> bool:
        """Decide whether the status has the figures of this generation, while it is measured."""
        measures = self.outline.get("phase") in (Phase.RUNNING, Phase.DEGRADED)
        return measures and self.outline.get("observedGeneration") == generation

    def turns(self, document: Document) -> bool:
        """Decide whether people wait for this change; an outline of the document is enough."""
        return turning_points(document) != turning_points(self.outline)

    def can_hold(self, pods: Sequence[PodFacts]) -> bool:
        """Decide whether rows of these pods may be written now.

        Returns False only if they are others than those that were written, and beyond the budget.
        """
        if self._rows.are_written(pods):
            return True
        least = self._rows.least_bytes(pods)
        return not least or self._budget.has(least + self._kept_free(rows_of_facts(pods)))

    def worth_writing(self, document: Document, *, is_whole: bool = True) -> Document | None:
        """Return the part of the document that is worth a write now; None without such a part.

        Beyond the budget, and if there is no news, the pods stay as they were written. The same
        holds for a document that is not whole: it lacks its `HEAVY` parts.
        """
        previous = self.previous if is_whole else self._kept.without_pods()
        differing = not is_whole or self.turns(document) or differs(previous, document)
        if is_whole and differing:
            patch, ends = self._patch_to(document, previous), _ends(self.outline, document)
            if self._has_room(patch) or (ends and self._budget.has(patch.size, in_advance=True)):
                return document
        return self._light_part(previous, light(previous, document), differing=differing)

    def _light_part(
        self, previous: Document, document: Document, *, differing: bool
    ) -> Document | None:
        """Return the part of a document without `HEAVY` news that is worth a write now.

        Without room, the rows of nodes stay as they were written, too. Then only what people wait
        for, and the sign of life, is written in any case.
        """
        urgent = self.turns(document) or self._is_stale(document)
        for part in (document, without_nodes(previous, document)):
            is_news = urgent or (differing and differs(previous, part))
            if is_news and self._has_room(self._patch_to(part, previous)):
                return part
        if urgent:
            return part
        self._patch = None
        return None

    def _has_room(self, patch: _Patch) -> bool:
        """Decide whether a patch is within the budget.

        What one agent says of its node must not take the bytes that other nodes' pods need. So a
        patch without rows of pods leaves room for all of those, or is within a part of the budget.
        """
        if patch.content.keys() & set(HEAVY):
            return self._budget.has(patch.size + self._kept_free(rows_of(patch.document)))
        return self._light_budget.has(patch.size) or self._budget.has(patch.size + 2 * MAX_BYTES)

    def _kept_free(self, rows: FirstRows) -> int:
        """Return the bytes that these rows leave for others, which are news to people.

        People read of the worst pod first. So noise must not take the bytes for it.
        """
        return 0 if rows.are_news(self._kept.worst) else MAX_BYTES

    def _patch_to(self, document: Document, previous: Document | None = None) -> _Patch:
        """Return the patch to this document: made once for the decision and the write."""
        if self._patch is None or self._patch.document is not document:
            content = merge_patch(self.previous if previous is None else previous, document)
            self._patch = _Patch(document, content, size_bytes(content))
            self._rows.weigh(content, self._patch.size)
        return self._patch

    def _is_stale(self, document: Document) -> bool:
        measured_s = document.get("measuredSeconds", 0) - self.outline.get("measuredSeconds", 0)
        if measured_s >= _STALE_S:
            return True
        written, known = self.outline.get("lastReportTime"), document.get("lastReportTime")
        if not known or known == written:
            return False
        # The wall clock may be set back, or be that of another leader.
        return not written or abs(epoch_s(known) - epoch_s(written)) >= _STALE_S

    async def write(self, document: Document) -> float | None:
        """Write the document; return the seconds until another attempt, or None without one.

        Rows that the API server refuses are left out. If it refuses the rest too, this document is
        given up: the next one may be another.
        """
        try:
            await self._write_accepted(document)
        except StatusConflictError as error:
            return self._decide_again(error.current)
        except NotLeadingError as error:
            return self._fail(error, transient=True)
        except ApiError as error:
            return self._take_refusal(error)
        except UNAVAILABLE as error:
            return self._fail(error, transient=True)
        return None

    async def _write_accepted(self, document: Document) -> None:
        for without in (without_refused, without_rows):
            try:
                return await self._write(document)
            except ApiError as error:
                if error.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                    raise
                self._note_refusal(error)
                document = without(document, error.fields)
        return await self._write(document)

    async def _write(self, document: Document) -> None:
        patch, self._patch = self._patch_to(document), None
        rows = self._rows.written
        # The API server refuses the write to a later object of the same name, by the UID, and to
        # one that another operator has written since then, by the version.
        metadata = {"uid": self._key.uid}
        if self._version:
            metadata["resourceVersion"] = self._version
        body = {"metadata": metadata, "status": patch.content}
        size = patch.size + size_bytes({**body, "status": {}})
        self._budget.take(size)
        if not patch.content.keys() & set(HEAVY):
            self._light_budget.take(size)
        answer = await self._patch_status(self._key.namespace, self._key.name, body)
        self._metrics.status_writes.inc()
        self._backoff.reset()
        self._take(answer)
        self._rows.mark_written(patch.content, rows)
        self.last_write = asyncio.get_running_loop().time()
        self.phase = str(self.outline.get("phase"))

    def _take_refusal(self, error: ApiError) -> float | None:
        """Return the seconds until another attempt, or None without one."""
        if isinstance(error, NotServedError):
            return self._fail(error, transient=True)
        if error.status == HTTPStatus.NOT_FOUND:
            return None  # deleted; the watch reports it soon
        if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
            self._note_refusal(error)
            self.last_write = asyncio.get_running_loop().time()
            return None
        busy = error.status == HTTPStatus.TOO_MANY_REQUESTS
        return self._fail(error, transient=busy or error.status >= 500)

    def _note_refusal(self, error: ApiError) -> None:
        self._metrics.status_write_failures.inc()
        self._failures.note(
            "refused",
            f"{self._key}: the API server refuses a part of the status, which is left out: "
            f"{bounded(str(error), _LONGEST_REFUSAL)}. Check that the CRD is of this version",
            interval_s=_FAILURE_LOG_S,
        )

    def _decide_again(self, current: Mapping[str, Any] | None) -> float | None:
        """Take in the object as it was changed; return the seconds until the next write."""
        if current is None or current["metadata"].get("uid") != self._key.uid:
            return None  # deleted; the watch reports it soon
        self._take(current)
        self._rows.forget()
        return self._backoff.next()

    def _fail(self, error: Exception, *, transient: bool) -> float:
        self._metrics.status_write_failures.inc()
        delay_s = self._backoff.next()
        self._failures.note(
            "failed",
            f"{self._key}: cannot write the status: {str(error) or type(error).__name__}; next "
            f"attempt in {delay_s:.1f} s",
            level=logging.WARNING if transient else logging.ERROR,
            interval_s=_FAILURE_LOG_S,
        )
        return delay_s


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _ends(before: Document, after: Document) -> bool:
    """Decide whether a probe becomes idle. Its last figures stay for long."""
    return after.get("phase") in _IDLE and before.get("phase") not in _IDLE


def _is_newer(version: str | None, known: str | None) -> bool:
    """Compare two versions of one object: decimal numbers, by the API's rules."""
    if not version or not known:
        return bool(version)
    return version.isdecimal() and known.isdecimal() and int(version) > int(known)
