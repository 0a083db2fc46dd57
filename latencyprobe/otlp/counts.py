"""The push as metrics: of the process that pushes, for Prometheus and for the collector."""

from __future__ import annotations

from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge


class Loss(StrEnum):
    """The reasons for data points that did not arrive."""

    QUEUE_FULL = "queue_full"
    REFUSED = "refused"
    REJECTED = "rejected"
    ERROR = "error"
    SHUTDOWN = "shutdown"


class PushCounts:
    """Numbers of exported and lost data points, and the size of the queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._exported = Counter(
            "latencyprobe_otlp_exported_points",
            "Data points that the collector has accepted.",
            registry=registry,
        )
        self._lost = Counter(
            "latencyprobe_otlp_lost_points",
            "Data points that the collector has not received or not accepted, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in Loss:
            self._lost.labels(reason)
        self._queued = Gauge(
            "latencyprobe_otlp_queued_bytes",
            "Size of the requests that wait for the collector.",
            registry=registry,
        )
        self.lost_points = 0

    def count_exported(self, points: int) -> None:
        """Count accepted data points."""
        self._exported.inc(points)

    def count_lost(self, reason: Loss, points: int) -> None:
        """Count lost data points."""
        self.lost_points += points
        self._lost.labels(reason).inc(points)

    def show_queued(self, size: int) -> None:
        """Show the size of the queue."""
        self._queued.set(size)
