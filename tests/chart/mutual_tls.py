"""An agent's TLS proxy and the operator's client, with the files of a rendered Secret."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from latencyprobe.domain.identities import AGENT_NAME, OPERATOR_NAME
from latencyprobe.process.listening import listen
from latencyprobe_agent.serving.tls import RenewedContext, ServerTlsFiles
from latencyprobe_agent.serving.tls_proxy import RefusalLog, TlsProxy
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from tests.patience import patient

KEYS = ("ca.crt", "tls.crt", "tls.key")


def mount(secret: dict[str, Any], directory: Path) -> tuple[Path, Path, Path]:
    """Write a Secret's files as the kubelet does: a new file takes the old one's place."""
    directory.mkdir(exist_ok=True)
    for key in KEYS:
        new = directory / f"{key}.new"
        new.write_bytes(base64.b64decode(secret["data"][key]))
        new.replace(directory / key)
    ca, certificate, private_key = (directory / key for key in KEYS)
    return ca, certificate, private_key


@dataclass
class ServedAgent:
    """A proxy with a gRPC server behind it that knows no method."""

    port: int
    refused: list[str] = field(default_factory=list)

    async def admits(self, client: tuple[Path, Path, Path], *, name: str = AGENT_NAME) -> bool:
        """Connect with these files, as the operator does to an agent of this name."""
        options = (
            ("grpc.ssl_target_name_override", name),
            ("grpc.use_local_subchannel_pool", 1),
        )
        credentials = ClientTlsFiles(*client).credentials()
        address = f"127.0.0.1:{self.port}"
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/no/Method")
            with pytest.raises(grpc.aio.AioRpcError) as answer:
                await call(b"", timeout=patient(10))
        # UNIMPLEMENTED comes from behind the handshake.
        codes = {grpc.StatusCode.UNAVAILABLE: False, grpc.StatusCode.UNIMPLEMENTED: True}
        return codes[answer.value.code()]


@contextlib.asynccontextmanager
async def served(files: tuple[Path, Path, Path], directory: Path) -> AsyncIterator[ServedAgent]:
    """Run a proxy with these files for the operator's name."""
    server = grpc.aio.server()
    inner = directory / "grpc"
    server.add_insecure_port(f"unix:{inner}")
    await server.start()
    listener = listen("127.0.0.1", 0)
    agent = ServedAgent(listener.getsockname()[1])
    context = RenewedContext(ServerTlsFiles(*files))
    proxy = TlsProxy(context, inner, OPERATOR_NAME, RefusalLog(agent.refused.append))
    proxy.start(listener)
    try:
        yield agent
    finally:
        await proxy.close()
        await server.stop(None)
