"""Reports over the network are compressed; those on a Unix socket are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.coverage import StageCoverage
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.domain.stages import STAGES
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.serving.service import Server, SocketAddress, TcpAddress
from tests.patience import patient
from tests.unit.agent.proxied import write_files
from tests.unit.agent.scripted import ScriptedEngine
from tests.unit.agent.states import probe, state

# Of the coverage of a stage: a report with it takes some 30 KB.
REASON = "a reason of some length " * 40
UID = "11111111-2222-3333-4444-555555555555"
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """A port in front of a server, which counts the bytes of its answers."""

    def __init__(self, connect: Callable[[], Awaitable[Pair]]) -> None:
        self._connect = connect
        self.answered = 0

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Pass on connections; yield the address."""
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await self._connect()
        await asyncio.gather(
            self._copy(reader, requests), self._copy(answers, writer, counted=True)
        )

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        with contextlib.closing(sink), contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                self.answered += len(data) if counted else 0
                sink.write(data)
                await sink.drain()


class Wordy(ScriptedEngine):
    """An engine with long reasons."""

    @property
    def coverage(self) -> tuple[StageCoverage, ...]:
        return tuple(replace(each, reason=REASON) for each in super().coverage)


@pytest.fixture
def engine() -> ScriptedEngine:
    return Wordy()


async def sizes_of_a_report(channel: grpc.aio.Channel, relay: Relay) -> tuple[int, int]:
    """Return the size of the agent's first report, and the bytes that it took on the way."""
    stub = NodeAgentStub(channel)
    wanted = probe(pid=0)
    wanted.targets[0].container.pod_uid = UID
    wanted.targets[0].container.container_id = f"containerd://{1:064x}"
    await stub.Apply(state(wanted))
    before = relay.answered
    stream: Any = stub.WatchReports()
    await stream.write(pb.WatchReportsRequest())
    async with asyncio.timeout(patient(10)):
        report: pb.Report = await stream.read()
    assert [each.reason for each in report.coverage] == [REASON] * len(STAGES)
    return report.ByteSize(), relay.answered - before


async def test_reports_over_the_network_are_compressed(agent: Agent, tmp_path: Path) -> None:
    authority = Authority()
    files = write_files(tmp_path, authority)
    server = Server(agent, TcpAddress("127.0.0.1:0", files, OPERATOR_NAME))
    host, _, port = (await server.start()).rpartition(":")
    client = authority.issue(OPERATOR_NAME, server=False, client=True, days=1)
    credentials = grpc.ssl_channel_credentials(
        authority.credential.certificate_pem, client.key_pem, client.certificate_pem
    )
    options = (("grpc.ssl_target_name_override", AGENT_NAME),)
    relay = Relay(lambda: asyncio.open_connection(host, int(port)))
    async with (
        relay.listen() as address,
        grpc.aio.secure_channel(address, credentials, options) as channel,
    ):
        size, answered = await sizes_of_a_report(channel, relay)
    await server.stop()
    assert answered < size / 2


async def test_reports_on_a_unix_socket_are_not_compressed(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "private" / "agent.sock"
    server = Server(agent, SocketAddress(path))
    await server.start()
    relay = Relay(lambda: asyncio.open_unix_connection(path))
    async with relay.listen() as address, grpc.aio.insecure_channel(address) as channel:
        size, answered = await sizes_of_a_report(channel, relay)
    await server.stop()
    assert answered > size
