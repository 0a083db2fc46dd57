"""The client of a collector: one call for each request, with the present files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc import aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb

from latencyprobe.otlp.files import (
    Headers,
    OtlpFileError,
    Stamps,
    channel_credentials,
    read_headers,
    stamps,
)
from latencyprobe.otlp.settings import OtlpSettings
from latencyprobe.process.repeated_lines import RepeatedLines

log = logging.getLogger(__name__)

CALL_S = 10.0
_SERVICE = pb.DESCRIPTOR.services_by_name["MetricsService"]
_METHOD = f"/{_SERVICE.full_name}/Export"
# Of the specification of OTLP, section "Failures".
_RETRIED = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# RESOURCE_EXHAUSTED is for a request that is too large, too. With this detail it is for the rate.
_DETAILS = "grpc-status-details-bin"
_RETRY_INFO = b"google.rpc.RetryInfo"
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Failures are retried here, with the pauses of `Backoff`: gRPC's own pauses are shorter.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel with renewed files makes a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
)
_LONGEST_DETAILS = 300
_HIDDEN = "[header]"
_SHORTEST_SECRET = 4

_Call = Callable[..., aio.UnaryUnaryCall[bytes, pb.ExportMetricsServiceResponse]]


class ExportError(Exception):
    """A request that the collector has not taken. `is_final`: nor will it take it later."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        self.is_final = is_final
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The answer to a request. `rejected_points`: those that the collector does not take."""

    rejected_points: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Connection:
    """A channel, with the files that it was made of."""

    stamps: Stamps
    headers: Headers
    channel: aio.Channel

    def call(self, data: bytes) -> aio.UnaryUnaryCall[bytes, pb.ExportMetricsServiceResponse]:
        """Call the collector with an encoded request."""
        method: _Call = self.channel.unary_unary(
            _METHOD, response_deserializer=pb.ExportMetricsServiceResponse.FromString
        )
        return method(data, timeout=CALL_S, metadata=self.headers)


class OtlpClient:
    """A client. Raises OtlpFileError if the files are unusable at the start.

    They are read again when they change. Unusable ones then change nothing.
    """

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        tls = settings.tls.paths if settings.tls is not None else ()
        self._paths = (*tls, *([settings.headers] if settings.headers is not None else []))
        self._lines = RepeatedLines(log)
        self._connection = self._connect()

    async def export(self, data: bytes) -> Acceptance:
        """Send an encoded request. Raises ExportError."""
        await self._renew()
        try:
            response = await self._connection.call(data)
        except aio.AioRpcError as error:
            is_final = error.code() not in _RETRIED and not _asks_for_retry(error)
            reason = f"{error.code().name}: {self._clean(error.details() or 'no details')}"
            raise ExportError(reason, is_final=is_final) from None
        partial = response.partial_success
        return Acceptance(partial.rejected_data_points, self._clean(partial.error_message))

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.channel.close()

    def _connect(self) -> _Connection:
        seen = stamps(self._paths)
        settings = self._settings
        headers = read_headers(settings.headers) if settings.headers is not None else ()
        target, compression = str(settings.endpoint), grpc.Compression.Gzip
        if settings.tls is None:
            channel = aio.insecure_channel(target, _OPTIONS, compression)
        else:
            credentials = channel_credentials(settings.tls)
            channel = aio.secure_channel(target, credentials, _OPTIONS, compression)
        return _Connection(seen, headers, channel)

    async def _renew(self) -> None:
        if stamps(self._paths) == self._connection.stamps:
            return
        try:
            renewed = self._connect()
        except OtlpFileError as error:
            self._lines.note("files", f"keeping the old files for OTLP: {error}")
            return
        log.info("files for OTLP renewed")
        await self._connection.channel.close()
        self._connection = renewed

    def _clean(self, text: str) -> str:
        """Return a collector's text without our headers, should it repeat them."""
        for _, value in self._connection.headers:
            for secret in (value, *value.split()):
                if len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, _HIDDEN)
        return text[:_LONGEST_DETAILS]


def _asks_for_retry(error: aio.AioRpcError) -> bool:
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    details = (value for key, value in error.trailing_metadata() if key == _DETAILS)
    return any(isinstance(value, bytes) and _RETRY_INFO in value for value in details)
