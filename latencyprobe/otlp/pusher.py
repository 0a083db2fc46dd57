"""The push: a snapshot of all metrics at each interval, and a queue that is sent in order.

All sums are cumulative. So a snapshot that is lost costs points of a curve and no sample: the next
one that arrives has the complete sums.
"""

from __future__ import annotations

import asyncio
import logging
import random

from prometheus_client import CollectorRegistry

from latencyprobe.otlp.backlog import Backlog
from latencyprobe.otlp.client import ExportError, OtlpClient
from latencyprobe.otlp.counts import Loss, PushCounts
from latencyprobe.otlp.encoding import Encoder, ExportRequest
from latencyprobe.process.backoff import Backoff
from latencyprobe.process.repeated_lines import RepeatedLines
from latencyprobe.process.tasks import all_to_end

log = logging.getLogger(__name__)

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 30.0
# At the end of the process, for the last snapshot.
FLUSH_S = 2.0


class OtlpPusher:
    """A push to one collector."""

    def __init__(
        self,
        client: OtlpClient,
        registry: CollectorRegistry,
        encoder: Encoder,
        *,
        interval_s: float,
        backlog: Backlog | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._client = client
        self._registry = registry
        self._encoder = encoder
        self._interval_s = interval_s
        self._counts = PushCounts(registry)
        self._backlog = backlog or Backlog()
        self._backoff = backoff or Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._lines = RepeatedLines(log)
        self._is_failing = False

    async def run(self) -> None:
        """Take snapshots and send them, until cancelled."""
        try:
            await all_to_end(self._take_snapshots(), self._send_all())
        except Exception:
            log.exception("unexpected error; no metrics by OTLP until this process starts again")
            raise

    async def flush(self) -> None:
        """Send the last snapshot, and all that waits, within a short time; `run` has ended."""
        self._backlog.put_back()
        self._take_snapshot()
        try:
            async with asyncio.timeout(FLUSH_S):
                while self._backlog.size:
                    await self._send_one()
        except (TimeoutError, ExportError):
            if points := self._backlog.points:
                self._counts.count_lost(Loss.SHUTDOWN, points)
                log.warning("%d data points were not exported before the end", points)

    async def _take_snapshots(self) -> None:
        loop = asyncio.get_running_loop()
        # Agents that were started together do not push together.
        next_at = loop.time() + random.uniform(0, self._interval_s)  # noqa: S311  (no secret)
        while True:
            await asyncio.sleep(max(next_at - loop.time(), 0))
            self._take_snapshot()
            next_at = max(next_at + self._interval_s, loop.time())

    def _take_snapshot(self) -> None:
        try:
            snapshot = self._encoder.requests(self._registry.collect())
        except Exception as error:  # noqa: BLE001 - logged
            self._note_error("collect", "cannot collect the metrics for OTLP", error)
            return
        if lost := self._backlog.add(snapshot):
            self._counts.count_lost(Loss.QUEUE_FULL, lost)
        self._counts.show_queued(self._backlog.size)

    async def _send_all(self) -> None:
        while True:
            try:
                await self._send_one()
            except ExportError as error:
                self._is_failing = True
                self._lines.note("away", f"cannot export metrics by OTLP, will retry: {error}")
                await asyncio.sleep(self._backoff.next())

    async def _send_one(self) -> None:
        """Send the oldest request, once there is one; raise ExportError if it is kept."""
        request = await self._backlog.take()
        try:
            await self._send(request)
        except ExportError as error:
            if not error.is_final:
                self._backlog.put_back()
                raise
            self._counts.count_lost(Loss.REFUSED, request.points)
            self._lines.note("refused", f"the collector has refused a request: {error}")
        except Exception as error:  # noqa: BLE001 - logged, and counted
            # Not kept: it may be the request that fails. The next snapshot has the complete sums.
            self._is_failing = True
            self._counts.count_lost(Loss.ERROR, request.points)
            self._note_error("export", "unexpected error; a request for OTLP is lost", error)
        self._backlog.finish()
        self._counts.show_queued(self._backlog.size)

    async def _send(self, request: ExportRequest) -> None:
        answer = await self._client.export(request.data)
        self._note_success()
        accepted = request.points - min(answer.rejected_points, request.points)
        self._counts.count_exported(accepted)
        if rejected := request.points - accepted:
            self._counts.count_lost(Loss.REJECTED, rejected)
            text = f"the collector has rejected {rejected} data points: {answer.message}"
            self._lines.note("rejected", text)

    def _note_error(self, kind: str, text: str, error: Exception) -> None:
        self._lines.note(kind, text, level=logging.ERROR, error=error)

    def _note_success(self) -> None:
        self._backoff.reset()
        if self._is_failing:
            self._is_failing = False
            log.info(
                "metrics are exported by OTLP again; data points lost since the start: %d",
                self._counts.lost_points,
            )
