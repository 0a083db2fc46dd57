"""A collector of OTLP on the public service definition, which keeps what it is sent."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc import aio
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as rpc

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.otlp.settings import OtlpTlsFiles
from tests.unit.otlp_points import Exported, exported

Answer = pb.ExportMetricsServiceResponse
Context = aio.ServicerContext[pb.ExportMetricsServiceRequest, Answer]
HOST = "localhost"


@dataclass
class OtlpReceiver(rpc.MetricsServiceServicer):
    """The service. `status`: the error that it answers with.

    A client that ends before the answer sends the same request again: it is kept once.
    """

    requests: list[pb.ExportMetricsServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str | bytes]] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)
    status: tuple[grpc.StatusCode, str] | None = None
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    attempts: int = 0

    async def Export(  # noqa: N802  (the name of the service definition)
        self, request: pb.ExportMetricsServiceRequest, context: Context
    ) -> Answer:
        """Take a request."""
        self.attempts += 1
        self.headers.append(dict(context.invocation_metadata() or ()))
        if self.status is not None:
            await context.abort(*self.status, trailing_metadata=self.trailers)
        if request not in self.requests:
            self.requests.append(request)
        return self.answer

    @property
    def points(self) -> list[Exported]:
        """All points that were taken."""
        return exported(self.requests)

    def values(self, name: str) -> list[float]:
        """The values of a number, in the order of their arrival."""
        return [each.value for each in self.points if each.metric.name == name]


@dataclass(frozen=True)
class Pki:
    """Certificates of a collector and of a client, in a folder."""

    folder: Path
    authority: Authority = field(default_factory=Authority)

    def server(self, *, wants_certificate: bool = False) -> grpc.ServerCredentials:
        """The credentials of a collector at localhost."""
        own = self.authority.issue(HOST, server=True, client=False, days=1)
        return grpc.ssl_server_credentials(
            [(own.key_pem, own.certificate_pem)],
            self.authority.credential.certificate_pem,
            require_client_auth=wants_certificate,
        )

    def ca(self) -> Path:
        """The file of the authority."""
        path = self.folder / "ca.crt"
        path.write_bytes(self.authority.credential.certificate_pem)
        return path

    def client(self) -> OtlpTlsFiles:
        """The files of a client with a certificate."""
        made: Credential = self.authority.issue("client", server=False, client=True, days=1)
        certificate, key = self.folder / "tls.crt", self.folder / "tls.key"
        certificate.write_bytes(made.certificate_pem)
        key.write_bytes(made.key_pem)
        return OtlpTlsFiles(self.ca(), certificate, key)


@contextlib.asynccontextmanager
async def receiving(
    receiver: OtlpReceiver, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Serve on a port of this machine, which the kernel chooses for 0."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    add: Callable[[OtlpReceiver, aio.Server], None] = rpc.add_MetricsServiceServicer_to_server
    add(receiver, server)
    address = f"{HOST}:{port}"
    if credentials is None:
        bound = server.add_insecure_port(address)
    else:
        bound = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)
