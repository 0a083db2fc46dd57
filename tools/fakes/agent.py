"""An agent without a kernel: uses the real protocol over real TLS, and obeys a test."""

from __future__ import annotations

import asyncio
import datetime
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from latencyprobe.domain.histogram import Histogram
from latencyprobe.domain.measurement import Measurement, StageMeasurement
from latencyprobe.protocol.measurements import PROTOCOL_VERSION, measurement_to_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1 import node_agent_pb2_grpc as rpc
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tools.fakes.windows import AgentWindows

Context = grpc.aio.ServicerContext[object, object]

LOOPBACK = "127.0.0.1"
AGENT_NAME = "agent.latencyprobe.io"
OPERATOR_NAME = "operator.latencyprobe.io"
# An operator may ping as often as a real agent lets it; see `serving/service.py`.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True)
class Authority:
    """A certificate authority for one test."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Make a new authority, unrelated to every other."""
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
        certificate = (
            _unsigned(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(directory, key, certificate)

    def issue(self, name: str) -> ClientTlsFiles:
        """Issue a certificate for this DNS name; return it with its key and the CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _unsigned(subject, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        files = ClientTlsFiles(
            ca=self.directory / "ca.crt",
            certificate=self.directory / f"{name}.crt",
            key=self.directory / f"{name}.key",
        )
        files.ca.write_bytes(self.certificate.public_bytes(pem))
        files.certificate.write_bytes(certificate.public_bytes(pem))
        files.key.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return files


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )


def measurement(*durations_ns: int, stage: str = "rx.total") -> Measurement:
    """Return these durations as samples of one stage."""
    return Measurement({stage: StageMeasurement(Histogram.of(durations_ns))})


class FakeAgent(rpc.NodeAgentServicer):
    """An agent that remembers its desired states, and reports the figures of a test.

    Large, because a test sets each answer, and reads each request, by an attribute.
    """

    def __init__(self, tls: ClientTlsFiles, *, instance_id: str = "first") -> None:
        self.instance_id = instance_id
        self.protocol_version = PROTOCOL_VERSION
        self.applied: list[pb.DesiredState] = []
        self.on_applied: Callable[[], object] = lambda: None
        """Called before a state is answered."""
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.status: Callable[[pb.Target], pb.TargetStatus] = _attached
        self.coverage: list[pb.StageCoverage] = []
        self.compression = grpc.Compression.Gzip
        """Of its reports. Agents of earlier versions do not compress them."""
        self.listeners = 0
        self.clients: list[bytes] = []
        """The certificate of each connection that called GetNodeInfo."""
        self.heard: list[pb.WatchReportsRequest] = []
        """The messages of all streams of reports."""
        self.windows = AgentWindows()
        self._tls = tls
        self._queues: set[asyncio.Queue[pb.Report]] = set()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, *, host: str = LOOPBACK, port: int = 0) -> None:
        """Serve; after a stop, on the same port as before."""
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key.read_bytes(), self._tls.certificate.read_bytes())],
            root_certificates=self._tls.ca.read_bytes(),
            require_client_auth=True,
        )
        self._server = grpc.aio.server(options=_OPTIONS)
        rpc.add_NodeAgentServicer_to_server(self, self._server)
        self.port = self._server.add_secure_port(f"{host}:{port or self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        """End at once, as a crash would."""
        if self._server:
            await self._server.stop(None)
            self._server = None

    @property
    def address(self) -> str:
        """The address that it listens on."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def target_ids(self) -> list[str]:
        """The targets of its last desired state."""
        return sorted(target.id for probe in self.applied[-1].probes for target in probe.targets)

    def report(
        self,
        probe_id: str,
        figures: dict[str, Measurement],
        *,
        generation: int | None = None,
        spoil: Callable[[pb.TargetReport], None] = lambda _: None,
    ) -> None:
        """Report the window of a probe's targets to all clients, with these figures added."""
        deltas = _deltas(probe_id, figures, spoil)
        asked = {probe.id: probe for probe in self.applied[-1].probes}
        probe = self.windows.summarised(deltas, probe=asked.get(probe_id))
        self.send(self._message(probe, generation))

    def report_deltas(
        self,
        probe_id: str,
        figures: dict[str, Measurement],
        *,
        generation: int | None = None,
        spoil: Callable[[pb.TargetReport], None] = lambda _: None,
    ) -> None:
        """Report these figures of a probe's targets to all clients, as an older agent."""
        self.send(self._message(_deltas(probe_id, figures, spoil), generation))

    def _message(self, probe: pb.ProbeReport, generation: int | None) -> pb.Report:
        last = self.applied[-1].generation
        return pb.Report(
            instance_id=self.instance_id,
            generation=last if generation is None else generation,
            probes=[probe],
        )

    def send(self, report: pb.Report) -> None:
        """Send this report to all clients."""
        for queue in self._queues:
            queue.put_nowait(report)

    # ------------------------------------------------------------------ the protocol

    async def GetNodeInfo(  # noqa: N802 - the protocol's name
        self, request: pb.GetNodeInfoRequest, context: Context
    ) -> pb.NodeInfo:
        """Describe this agent."""
        self.clients.extend(context.auth_context()["x509_pem_cert"])
        return pb.NodeInfo(
            agent_version="0.1.0",
            protocol_version=self.protocol_version,
            instance_id=self.instance_id,
            coverage=self.coverage,
        )

    async def Apply(  # noqa: N802
        self, request: pb.DesiredState, context: Context
    ) -> pb.ApplyResult:
        """Remember the state."""
        if self.refuse:
            await context.abort(*self.refuse)
        if self.applied and request.generation <= self.applied[-1].generation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a newer one was applied")
        self.applied.append(request)
        self.on_applied()
        return pb.ApplyResult(
            generation=request.generation,
            probes=[
                pb.ProbeStatus(id=probe.id, targets=[self.status(t) for t in probe.targets])
                for probe in request.probes
            ],
            coverage=self.coverage,
        )

    async def WatchReports(  # noqa: N802
        self, requests: AsyncIterator[pb.WatchReportsRequest], context: Context
    ) -> AsyncIterator[pb.Report]:
        """Yield the reports of `report` and `send`, and the pods that the client wants."""
        context.set_compression(self.compression)
        queue: asyncio.Queue[pb.Report] = asyncio.Queue()
        self._queues.add(queue)
        self.listeners += 1
        listening = asyncio.create_task(self._hear(requests, queue))
        try:
            for sequence in itertools.count(1):
                report = pb.Report()
                report.CopyFrom(await queue.get())
                report.sequence = sequence
                yield report
        finally:
            listening.cancel()
            self.listeners -= 1
            self._queues.discard(queue)

    async def _hear(
        self, requests: AsyncIterator[pb.WatchReportsRequest], queue: asyncio.Queue[pb.Report]
    ) -> None:
        async for request in requests:
            self.heard.append(request)
            answers = [self.windows.answer(wanted) for wanted in request.wanted]
            for answer in filter(None, answers):
                queue.put_nowait(self._message(answer, None))

    def Trace(  # noqa: N802
        self, request: pb.TraceRequest, context: Context
    ) -> AsyncIterator[pb.TraceEvents]:
        """Refuse; the operator does not call it."""
        raise NotImplementedError


def _deltas(
    probe_id: str,
    figures: dict[str, Measurement],
    spoil: Callable[[pb.TargetReport], None],
) -> pb.ProbeReport:
    probe = pb.ProbeReport(id=probe_id)
    for target_id, measured in figures.items():
        stages, counters = measurement_to_proto(measured)
        status = pb.TargetStatus(id=target_id, state=pb.TargetStatus.ATTACHED)
        spoil(probe.targets.add(status=status, stages=stages, counters=counters))
    return probe


def _attached(target: pb.Target) -> pb.TargetStatus:
    return pb.TargetStatus(id=target.id, state=pb.TargetStatus.ATTACHED)
