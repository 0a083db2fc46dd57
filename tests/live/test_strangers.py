"""Who has no business with the agent is refused, logged and counted; measurement goes on."""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.domain.fairness import MAX_TARGETS
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.exposition.page import KEPT_S
from latencyprobe.protocol.measurements import MAX_REQUEST_BYTES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.serving.tls_proxy import MAX_CONNECTIONS, MAX_HANDSHAKES
from tests.live.pods import Pod
from tests.live.targets import made_cgroup, until
from tests.patience import patient
from tests.unit.agent.states import seconds

AGENT = (sys.executable, "-P", "-m", "latencyprobe.commands.cli", "agent")
REQUESTS = 300
FLOOD = 400
MEBIBYTE = 1 << 20
# What connections that were refused may leave behind: caches of the allocator's, no more of them.
GROWTH_BYTES = 24 * MEBIBYTE


@dataclass
class Served:
    """A real agent behind mutual TLS."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str
    metrics: str
    authority: Authority

    @property
    def host_port(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host, int(port)

    def channel(self, credential: Credential | None) -> grpc.Channel:
        """A client with this certificate."""
        credentials = grpc.ssl_channel_credentials(
            self.authority.credential.certificate_pem,
            credential.key_pem if credential else None,
            credential.certificate_pem if credential else None,
        )
        options = (
            ("grpc.ssl_target_name_override", AGENT_NAME),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.secure_channel(self.address, credentials, options)

    @property
    def operator(self) -> Credential:
        return self.authority.issue(OPERATOR_NAME, server=False, client=True, days=1)

    def refused(self, reason: str) -> float:
        """How many were refused for this reason, as the metrics have it: up to a second late."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        (count,) = re.findall(
            rf'latencyprobe_refused_connections_total{{reason="{reason}"}} (\S+)', text
        )
        return float(count)

    def refused_by_now(self, reason: str) -> float:
        """How many were refused until this call: no page from before it is served any more."""
        time.sleep(KEPT_S)
        return self.refused(reason)

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests, since it outlives all that is done to it."""
    folder = tmp_path_factory.mktemp("agent")
    authority = Authority()
    agent = authority.issue(AGENT_NAME, server=True, client=False, days=1)
    files = {
        "ca": authority.credential.certificate_pem,
        "cert": agent.certificate_pem,
        "key": agent.key_pem,
    }
    options = ["--listen=127.0.0.1:0", "--metrics-address=127.0.0.1:0", "--node-name=blue"]
    options.append("--max-cpu-percent=10000")  # every packet is counted
    for name, text in files.items():
        (folder / name).write_bytes(text)
        options.append(f"--{name}-file={folder / name}")
    log = folder / "log"
    with log.open("wb") as stderr, subprocess.Popen([*AGENT, *options], stderr=stderr) as process:
        try:
            until(lambda: process.poll() is not None or "serving on" in log.read_text(), "serving")
            said = log.read_text()
            metrics = said.split("metrics on ")[1].split()[0]
            address = said.split("serving on ")[1].split()[0]
            yield Served(process, log, address, metrics, authority)
            assert process.poll() is None
            assert "PRIVATE KEY" not in log.read_text()
            assert "CERTIFICATE-----" not in log.read_text()
            process.terminate()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def expired(authority: Authority) -> Credential:
    """The operator's certificate of last year."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.credential.certificate_pem)
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(OPERATOR_NAME)]), critical=False)
        .sign(authority.credential.key, hashes.SHA256())
    )
    return Credential(signed, key)


@pytest.mark.parametrize(
    ("who", "reason", "logged", "code"),
    [
        ("nobody", "no_certificate", "sent no certificate", grpc.StatusCode.UNAVAILABLE),
        ("expired", "expired", "certificate has expired", grpc.StatusCode.UNAVAILABLE),
        (
            "foreign",
            "foreign_authority",
            "is not signed by the configured CA",
            grpc.StatusCode.UNAVAILABLE,
        ),
        (
            "agent",
            "no_client_certificate",
            "is not valid for client authentication",
            grpc.StatusCode.UNAVAILABLE,
        ),
        ("other", "other_name", "for somebody.else, not for", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_a_stranger_is_refused_logged_and_counted(
    served: Served, who: str, reason: str, logged: str, code: grpc.StatusCode
) -> None:
    authority = served.authority
    credential = {
        "nobody": None,
        "expired": expired(authority),
        "foreign": Authority().issue(OPERATOR_NAME, server=False, client=True, days=1),
        "agent": authority.issue(AGENT_NAME, server=True, client=False, days=1),
        "other": authority.issue("somebody.else", server=False, client=True, days=1),
    }[who]
    before = served.refused(reason)  # no other test has any for this reason

    with served.channel(credential) as channel, pytest.raises(grpc.RpcError) as refused:
        NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)

    assert refused.value.code() == code
    until(lambda: served.refused(reason) >= before + 1, "the refusal")
    line = next(line for line in served.log.read_text().splitlines() if logged in line)
    assert re.search(r"refused 127\.0\.0\.1:\d+: ", line)


def test_a_client_without_tls_is_refused_and_counted(served: Served) -> None:
    before = served.refused("no_tls")  # nor for this one
    with socket.create_connection(served.host_port, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert connection.recv(100) == b""
    until(lambda: served.refused("no_tls") == before + 1, "the refusal")


@pytest.fixture
def pair(pair: tuple[Pod, Pod]) -> Iterator[tuple[Pod, Pod]]:
    """The second pod is a container of Kubernetes: over TLS, an agent measures nothing else."""
    client, server = pair
    with made_cgroup(f"kubepods/pod{uuid.uuid4()}/{secrets.token_hex(32)}") as cgroup:
        yield client, replace(server, cgroup=cgroup)


def probe_of(pod: Pod, name: str = "kept") -> pb.Probe:
    container = pb.Container(
        pod_uid=pod.cgroup.parent.name.removeprefix("pod"),
        container_id=f"containerd://{pod.cgroup.name}",
    )
    return pb.Probe(
        id=name,
        modules=["rx", "tx"],
        interval=seconds(0.2),
        targets=[pb.Target(id="t", container=container)],
    )


@contextlib.contextmanager
def inhabited(pod: Pod) -> Iterator[None]:
    """With a process in it, so that it is found at once."""
    resident = pod.start("server", pod.address, "7001", "1")
    try:
        yield
    finally:
        resident.stop()


def attach(stub: NodeAgentStub, state: pb.DesiredState) -> None:
    """Apply until the first target is attached: an agent looks for new pods every few seconds."""

    def is_attached() -> bool:
        state.generation = time.time_ns()
        target = stub.Apply(state, timeout=60).probes[0].targets[0]
        return bool(target.state == pb.TargetStatus.ATTACHED)

    until(is_attached, "the container to be found", seconds=patient(60))


class Measured:
    """What the agent reports of one pod, from the beginning of the context on."""

    def __init__(self, served: Served, pod: Pod) -> None:
        self.count = 0
        self._served = served
        self._pod = pod

    @contextlib.contextmanager
    def running(self) -> Iterator[Measured]:
        with inhabited(self._pod), self._served.channel(self._served.operator) as channel:
            stub = NodeAgentStub(channel)
            stream = stub.WatchReports(iter([pb.WatchReportsRequest()]))
            with ThreadPoolExecutor(1) as listener:
                heard = listener.submit(self._listen, stream)
                state = pb.DesiredState(
                    generation=time.time_ns(), probes=[probe_of(self._pod)], lease=seconds(60)
                )
                attach(stub, state)
                try:
                    yield self
                finally:
                    stub.Apply(pb.DesiredState(generation=time.time_ns()), timeout=60)
                    stream.cancel()
                    heard.result()

    def _listen(self, stream: Iterable[pb.Report]) -> None:
        with contextlib.suppress(grpc.RpcError):
            for report in stream:
                for target in (t for probe in report.probes for t in probe.targets):
                    self.count += sum(
                        sum(stage.histogram.counts)
                        for stage in target.stages
                        if stage.name == "rx.total"
                    )


def exchange(pair: tuple[Pod, Pod], *, gap_ms: float = 0) -> None:
    """REQUESTS from the first pod to the second."""
    client, server = pair
    where = (server.address, "7000", str(REQUESTS))
    serving = server.start("server", *where)
    asking = client.start("client", *where, f"--gap-ms={gap_ms}")
    asking.go()
    asking.result()
    serving.result()


def wait_for_count(measured: Measured) -> None:
    until(lambda: measured.count >= REQUESTS, "all requests in the reports")
    assert measured.count == REQUESTS


@contextlib.contextmanager
def flood(served: Served) -> Iterator[None]:
    """Connections that never say a word. Those that the agent closes are not made anew."""
    with contextlib.ExitStack() as stack:
        for _ in range(FLOOD):
            stack.enter_context(socket.create_connection(served.host_port, timeout=10))
        yield


def test_a_flood_of_connections_is_bounded_and_measurement_goes_on(
    served: Served, pair: tuple[Pod, Pod]
) -> None:
    measured = Measured(served, pair[1])
    with measured.running():
        descriptors, memory = served.descriptors(), served.rss_bytes()
        crowded = served.refused_by_now("crowded")
        with flood(served):
            until(lambda: served.refused("crowded") >= crowded + 300, "refusals")
            exchange(pair)
            # Who has a certificate still gets in.
            with served.channel(served.operator) as channel:
                info = NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
            assert info.node_name == "blue"
            assert served.descriptors() <= descriptors + MAX_HANDSHAKES + 8
            assert served.rss_bytes() <= memory + GROWTH_BYTES
        wait_for_count(measured)
    warnings = [
        line for line in served.log.read_text().splitlines() if "TLS handshakes are pending" in line
    ]
    assert len(warnings) < 10


def test_idle_connections_are_bounded_and_lock_no_client_out(served: Served) -> None:
    crowded = served.refused_by_now("crowded")
    descriptors = served.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 8):
            channel = stack.enter_context(served.channel(served.operator))
            NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
        until(lambda: served.refused("crowded") >= crowded + 8, "refusals")
        # Each has a descriptor outside, one inside, and gRPC's own.
        assert served.descriptors() <= descriptors + 3 * MAX_CONNECTIONS + 8


def test_oversized_and_malformed_messages_are_errors_and_measurement_goes_on(
    served: Served, pair: tuple[Pod, Pod]
) -> None:
    measured = Measured(served, pair[1])
    with measured.running(), served.channel(served.operator) as channel:
        memory = served.rss_bytes()
        for _ in range(5):
            apply: Any = channel.unary_unary("/latencyprobe.v1.NodeAgent/Apply")
            with pytest.raises(grpc.RpcError) as refused:
                apply(bytes(MAX_REQUEST_BYTES + 1), timeout=30)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError) as refused:
                apply(b"\xff" * 1000, timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNKNOWN
            assert "Wire format was corrupt" in (refused.value.details() or "")
        # A receive buffer's worth for what was under way.
        assert served.rss_bytes() <= memory + GROWTH_BYTES + MAX_REQUEST_BYTES
        exchange(pair)
        wait_for_count(measured)


def test_an_invalid_or_too_large_state_is_refused_alone_and_measurement_goes_on(
    served: Served, pair: tuple[Pod, Pod]
) -> None:
    measured = Measured(served, pair[1])
    container = pb.Container(
        pod_uid="../../etc/passwd/../../../../../..", container_id="containerd://" + "ab" * 32
    )
    path = pb.Probe(
        id="path",
        modules=["rx"],
        interval=seconds(1),
        targets=[pb.Target(id="t", container=container)],
    )
    many = pb.Probe(
        id="many",
        modules=["rx"],
        interval=seconds(1),
        targets=[
            pb.Target(
                id=str(n),
                container=pb.Container(pod_uid="0" * 32, container_id=f"containerd://{n:064x}"),
            )
            for n in range(MAX_TARGETS + 900)
        ],
    )
    twice = pb.DesiredState(probes=[path, path])
    with measured.running(), served.channel(served.operator) as channel:
        stub = NodeAgentStub(channel)
        for probe, message in (
            (path, "targets[0].container.pod_uid: "),
            (many, f"at most {MAX_TARGETS} targets"),
        ):
            state = pb.DesiredState(
                generation=time.time_ns(), probes=[probe_of(pair[1]), probe], lease=seconds(60)
            )
            sound, refused = stub.Apply(state, timeout=30).probes
            assert [target.state for target in sound.targets] == [pb.TargetStatus.ATTACHED]
            failed = [t for t in refused.targets if t.state == pb.TargetStatus.FAILED]
            assert any(message in target.message for target in failed)
        twice.generation = time.time_ns()
        with pytest.raises(grpc.RpcError) as error:
            stub.Apply(twice, timeout=30)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        exchange(pair)
        wait_for_count(measured)


def test_a_slow_reader_of_reports_costs_no_memory_and_loses_nothing(
    served: Served, pair: tuple[Pod, Pod]
) -> None:
    probes = [probe_of(pair[1], f"p{n}") for n in range(200)]
    with inhabited(pair[1]), served.channel(served.operator) as channel:
        stub = NodeAgentStub(channel)
        stream = stub.WatchReports(iter([pb.WatchReportsRequest()]), timeout=60)
        attach(stub, pb.DesiredState(probes=probes, lease=seconds(60)))
        memory = served.rss_bytes()
        exchange(pair, gap_ms=20)  # some 30 intervals, of 200 probes each, that nobody reads
        assert served.rss_bytes() <= memory + GROWTH_BYTES

        count = 0
        for report in stream:
            count += sum(
                sum(stage.histogram.counts)
                for probe in report.probes
                if probe.id == "p7"
                for target in probe.targets
                for stage in target.stages
                if stage.name == "rx.total"
            )
            if count >= REQUESTS:
                break
        assert count == REQUESTS
        stream.cancel()
        stub.Apply(pb.DesiredState(generation=time.time_ns()), timeout=60)
