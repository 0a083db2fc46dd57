"""What the operator's unit tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import grpc
import pytest

from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tests.unit.operator_.listening import Listening
from tools.fakes.agent import AGENT_NAME, OPERATOR_NAME, Authority, FakeAgent


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """A module's own LOOP, where it has one."""
    loop = getattr(item.module, "LOOP", None) if isinstance(item, pytest.Function) else None
    return {"own": loop} if loop else {"real": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs both sides' certificates."""
    return Authority.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def agent_tls(authority: Authority) -> ClientTlsFiles:
    """The agents' certificate."""
    return authority.issue(AGENT_NAME)


@pytest.fixture(scope="session")
def operator_tls(authority: Authority) -> ClientTlsFiles:
    """The operator's certificate."""
    return authority.issue(OPERATOR_NAME)


@pytest.fixture(scope="session")
def foreign_tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a foreign authority's certificate for the operator's name."""
    folder = tmp_path_factory.mktemp("foreign")
    Authority.make(folder).issue(OPERATOR_NAME)
    return folder


@pytest.fixture
def compression() -> grpc.Compression:
    """Of the reports of `listening`'s agent."""
    return grpc.Compression.Gzip


@pytest.fixture
async def listening(
    agent_tls: ClientTlsFiles, operator_tls: ClientTlsFiles, compression: grpc.Compression
) -> AsyncIterator[Listening]:
    """A fleet with one agent."""
    agent = FakeAgent(agent_tls)
    await agent.start()
    agent.compression = compression
    listening = Listening(operator_tls, agent)
    await listening.connect()
    yield listening
    await listening.fleet.close()
    await agent.stop()
