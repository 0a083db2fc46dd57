"""Who is turned away, how that is told, and that a crowd is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.process.listening import listen
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.serving import tls_proxy
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.service import Server, TcpAddress
from latencyprobe_agent.serving.tls import ServerTlsFiles
from latencyprobe_agent.serving.tls_proxy import RefusalLog, TlsRefusal, refusal_in
from tests.unit.agent.running import until
from tests.unit.agent.scripted import ScriptedEngine
from tests.unit.agent.states import probe, state


def _verification_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    return error


def _ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (_verification_error(9), TlsRefusal.NOT_YET_VALID),
        (_verification_error(10), TlsRefusal.EXPIRED),
        (_verification_error(19), TlsRefusal.FOREIGN),
        (_verification_error(20), TlsRefusal.FOREIGN),
        (_verification_error(26), TlsRefusal.PURPOSE),
        (_verification_error(7), TlsRefusal.FOREIGN),
        (_ssl_error("PEER_DID_NOT_RETURN_A_CERTIFICATE"), TlsRefusal.NO_CERTIFICATE),
        (_ssl_error("HTTP_REQUEST"), TlsRefusal.NO_TLS),
        (TimeoutError(), TlsRefusal.SLOW),
        (ConnectionResetError(), TlsRefusal.NO_TLS),
    ],
)
def test_a_handshakes_failure_has_a_meaning(error: Exception, refusal: TlsRefusal) -> None:
    assert refusal_in(error) is refusal


async def test_a_flood_is_counted_and_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    refusals = RefusalLog(lambda reason: counts.update([reason]))
    with caplog.at_level(logging.WARNING):
        for number in range(1000):
            refusals.refuse(TlsRefusal.EXPIRED, f"10.0.0.1:{number}", "the certificate has expired")
        refusals.refuse(
            TlsRefusal.FOREIGN, "10.0.0.2:1", "the certificate is not signed by the configured CA"
        )
        monkeypatch.setattr(tls_proxy, "_LOG_S", 0.0)
        refusals.refuse(TlsRefusal.EXPIRED, "10.0.0.3:1", "the certificate has expired")

    assert counts == {TlsRefusal.EXPIRED: 1001, TlsRefusal.FOREIGN: 1}
    assert [record.getMessage() for record in caplog.records] == [
        "refused 10.0.0.1:0: the certificate has expired",
        "refused 10.0.0.2:1: the certificate is not signed by the configured CA",
        "refused 10.0.0.3:1: the certificate has expired (and 999 more since the last message)",
    ]


class Served:
    """An agent behind its TLS proxy."""

    def __init__(self, address: str, authority: Authority, metrics: AgentMetrics) -> None:
        self.address = address
        self.metrics = metrics
        self._authority = authority

    @property
    def host_port(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host, int(port)

    def refused(self, refusal: TlsRefusal) -> float:
        return (
            self.metrics.registry.get_sample_value(
                "latencyprobe_refused_connections_total", {"reason": refusal}
            )
            or 0.0
        )

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own, as the operator."""
        operator = self._authority.issue(OPERATOR_NAME, server=False, client=True, days=1)
        credentials = grpc.ssl_channel_credentials(
            self._authority.credential.certificate_pem, operator.key_pem, operator.certificate_pem
        )
        options = (
            ("grpc.ssl_target_name_override", AGENT_NAME),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.aio.secure_channel(self.address, credentials, options)

    async def ask(self) -> str:
        """The node's name, as the operator."""
        async with self.channel() as channel:
            info = await NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
        return info.node_name


@pytest.fixture
async def served(agent: Agent, tmp_path: Path) -> AsyncIterator[Served]:
    authority = Authority()
    own = authority.issue(AGENT_NAME, server=True, client=False, days=1)
    files = ServerTlsFiles(tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key")
    files.ca.write_bytes(authority.credential.certificate_pem)
    files.certificate.write_bytes(own.certificate_pem)
    files.key.write_bytes(own.key_pem)
    metrics = AgentMetrics()
    server = Server(agent, TcpAddress("127.0.0.1:0", files, OPERATOR_NAME), metrics)
    yield Served(await server.start(), authority, metrics)
    await server.stop()


async def test_an_idle_connection_loses_its_place_to_a_later_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "MAX_HANDSHAKES", 4)
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(served.host_port)) for _ in range(10)
        ]
        await until(lambda: served.refused(TlsRefusal.CROWDED) == 6, "six to lose their places")
        assert await served.ask() == "blue"
        for connection in silent[:6]:
            connection.settimeout(5)
            assert await asyncio.to_thread(connection.recv, 1) == b""


async def test_an_idle_connection_is_closed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "HANDSHAKE_S", 0.05)
    with socket.create_connection(served.host_port, timeout=5) as connection:
        assert await asyncio.to_thread(connection.recv, 1) == b""
    assert served.refused(TlsRefusal.SLOW) == 1


async def test_idle_connections_make_room_and_one_with_a_call_stays(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_proxy, "MAX_CONNECTIONS", 4)
    async with contextlib.AsyncExitStack() as stack:
        watching = await stack.enter_async_context(served.channel())
        call: Any = NodeAgentStub(watching).WatchReports(iter([pb.WatchReportsRequest()]))
        assert isinstance(await call.read(), pb.Report)
        for _ in range(10):
            idle = await stack.enter_async_context(served.channel())
            info = await NodeAgentStub(idle).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
            assert info.node_name == "blue"
        assert served.refused(TlsRefusal.CROWDED) == 7
        assert not call.done()
        call.cancel()


async def test_over_tls_only_containers_are_measured_and_traced(
    served: Served, engine: ScriptedEngine
) -> None:
    by_container, by_pid = probe("by-container"), probe("by-pid")
    by_container.targets.add(
        id="c", container=pb.Container(pod_uid="0" * 32, container_id=f"containerd://{'0' * 64}")
    )
    limits = [pb.StageLimit(stage="rx.total", min_ns=1)]
    async with served.channel() as channel:
        stub = NodeAgentStub(channel)
        result = await stub.Apply(state(by_container, by_pid), timeout=10)
        assert {
            (each.id, target.id): target.state for each in result.probes for target in each.targets
        } == {
            ("by-container", "c"): pb.TargetStatus.PENDING,
            ("by-container", "t"): pb.TargetStatus.FAILED,
            ("by-pid", "t"): pb.TargetStatus.FAILED,
        }
        assert engine.slots == {}
        call: Any = stub.Trace(pb.TraceRequest(probe_id="by-container", limits=limits))
        assert isinstance(await call.read(), pb.TraceEvents)
        await until(lambda: engine.trace_spec is not None, "the trace")
        assert engine.trace_spec is not None
        assert engine.trace_spec.slots == frozenset()
        call.cancel()


async def test_every_reason_is_there_from_the_start(served: Served) -> None:
    assert {refusal: served.refused(refusal) for refusal in TlsRefusal} == dict.fromkeys(
        TlsRefusal, 0.0
    )
    assert (
        served.metrics.registry.get_sample_value(
            "latencyprobe_refused_connections_total", {"reason": TlsRefusal.CROWDED}
        )
        == 0
    )


@pytest.mark.parametrize("host", ["::", "", "127.0.0.1", "0.0.0.0"])
def test_it_listens_where_it_was_asked_to_over_ipv4(host: str) -> None:
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
