"""A receiver of OTLP that keeps the newest request, for agents that are processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as rpc

from tests.unit.otlp_points import Exported, exported


class NewestPush(rpc.MetricsServiceServicer):
    """The service. A push is one request here."""

    def __init__(self) -> None:
        self._newest = pb.ExportMetricsServiceRequest()

    def Export(  # noqa: N802  (the name of the service definition)
        self, request: pb.ExportMetricsServiceRequest, _: grpc.ServicerContext
    ) -> pb.ExportMetricsServiceResponse:
        """Take a request."""
        self._newest = request
        return pb.ExportMetricsServiceResponse()

    def newest(self, name: str) -> list[Exported]:
        """The points of a metric, of the newest push."""
        return [each for each in exported([self._newest]) if each.metric.name == name]


@contextlib.contextmanager
def received_pushes() -> Iterator[tuple[str, NewestPush]]:
    """Serve on a port of this machine."""
    service = NewestPush()
    server = grpc.server(ThreadPoolExecutor(2))
    add: Callable[[NewestPush, grpc.Server], None] = rpc.add_MetricsServiceServicer_to_server
    add(service, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        yield address, service
    finally:
        server.stop(None).wait()
