"""Mutual TLS on a real port: who gets in, and renewal without a restart."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from latencyprobe.commands.pki import Authority, Credential
from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe.protocol.v1.node_agent_pb2_grpc import NodeAgentStub
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.serving.service import ListenError, Server, TcpAddress
from latencyprobe_agent.serving.tls import ServerTlsFiles, TlsFileError


def _issue(authority: Authority, name: str, *, client: bool = True) -> Credential:
    return authority.issue(name, server=not client, client=client, days=1)


def _write(directory: Path, authority: Authority) -> ServerTlsFiles:
    credential = _issue(authority, AGENT_NAME, client=False)
    files = ServerTlsFiles(directory / "ca.crt", directory / "tls.crt", directory / "tls.key")
    for path, text in (
        (files.ca, authority.credential.certificate_pem),
        (files.certificate, credential.certificate_pem),
        (files.key, credential.key_pem),
    ):
        # As the kubelet does: a new file takes the old one's place.
        new = path.with_suffix(".new")
        new.write_bytes(text)
        new.replace(path)
    return files


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> ServerTlsFiles:
    return _write(tmp_path, authority)


@pytest.fixture
async def address(agent: Agent, files: ServerTlsFiles) -> AsyncIterator[str]:
    server = Server(agent, TcpAddress("127.0.0.1:0", files, OPERATOR_NAME))
    yield await server.start()
    await server.stop()


async def _node_name(address: str, ca: Authority, client: Credential | None) -> str:
    credentials = grpc.ssl_channel_credentials(
        ca.credential.certificate_pem,
        client.key_pem if client else None,
        client.certificate_pem if client else None,
    )
    options = (("grpc.ssl_target_name_override", AGENT_NAME),)
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        info = await NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
        return info.node_name


@contextlib.asynccontextmanager
async def _refused() -> AsyncIterator[pytest.ExceptionInfo[grpc.aio.AioRpcError]]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        yield refused


async def test_the_operator_gets_in(address: str, authority: Authority) -> None:
    assert await _node_name(address, authority, _issue(authority, OPERATOR_NAME)) == "blue"


async def test_a_client_without_a_certificate_is_refused(
    address: str, authority: Authority
) -> None:
    async with _refused() as refused:
        await _node_name(address, authority, None)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_foreign_certificate_is_refused(address: str, authority: Authority) -> None:
    async with _refused() as refused:
        await _node_name(address, authority, _issue(Authority(), OPERATOR_NAME))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_another_name_than_the_operators_is_denied(
    address: str, authority: Authority
) -> None:
    async with _refused() as refused:
        await _node_name(address, authority, _issue(authority, AGENT_NAME))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_an_agents_own_certificate_is_no_clients(address: str, authority: Authority) -> None:
    async with _refused() as refused:
        await _node_name(address, authority, _issue(authority, AGENT_NAME, client=False))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_speaks_no_tls_is_refused(address: str) -> None:
    async with _refused() as refused, grpc.aio.insecure_channel(address) as channel:
        await NodeAgentStub(channel).GetNodeInfo(pb.GetNodeInfoRequest(), timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_renewed_certificates_are_used_without_a_restart(
    address: str, authority: Authority, tmp_path: Path
) -> None:
    assert await _node_name(address, authority, _issue(authority, OPERATOR_NAME)) == "blue"
    renewed = Authority()
    _write(tmp_path, renewed)
    assert await _node_name(address, renewed, _issue(renewed, OPERATOR_NAME)) == "blue"
    async with _refused():
        await _node_name(address, authority, _issue(authority, OPERATOR_NAME))


async def test_a_key_that_does_not_fit_is_not_taken(
    address: str, authority: Authority, files: ServerTlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    files.key.write_bytes(_issue(authority, AGENT_NAME).key_pem)
    assert await _node_name(address, authority, _issue(authority, OPERATOR_NAME)) == "blue"
    assert "keeping the old certificates" in caplog.text


async def test_a_port_that_is_taken_is_said(agent: Agent, files: ServerTlsFiles) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(agent, TcpAddress(f"127.0.0.1:{port}", files, OPERATOR_NAME))
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}: Address already in use"):
            await server.start()
        await server.stop()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tls.key", None, "tls.key: No such file or directory"),
        ("tls.crt", b"no certificate", "is not an unencrypted PEM key"),
        ("ca.crt", b"no certificate", "ca.crt is not a PEM certificate"),
        ("tls.key", b"no key", "is not an unencrypted PEM key"),
    ],
)
def test_files_that_can_not_be_used_are_said(
    files: ServerTlsFiles, tmp_path: Path, name: str, text: bytes | None, message: str
) -> None:
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(TlsFileError, match=message):
        files.context()


def test_a_key_of_another_certificate_is_refused(
    files: ServerTlsFiles, authority: Authority
) -> None:
    files.key.write_bytes(_issue(authority, AGENT_NAME).key_pem)
    with pytest.raises(TlsFileError, match="is not an unencrypted PEM key"):
        files.context()
