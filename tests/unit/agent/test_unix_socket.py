"""The socket of an agent that listens on this machine alone, where another one may be."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from latencyprobe_agent.agent import Agent
from latencyprobe_agent.serving.service import ListenError, Server, SocketAddress


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir(mode=0o700)
    return tmp_path / "private" / "agent.sock"


@pytest.fixture
def other(path: Path) -> Iterator[socket.socket]:
    """Another agent's socket, with room for one connection that waits."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        yield listener


@pytest.mark.parametrize("waiting", [0, 1])
async def test_a_socket_on_which_another_agent_listens_is_left_to_it(
    agent: Agent, other: socket.socket, path: Path, waiting: int
) -> None:
    server = Server(agent, SocketAddress(path))
    with contextlib.ExitStack() as stack:
        for _ in range(waiting):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        with pytest.raises(ListenError, match="another agent listens on it"):
            await server.start()


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
async def test_a_socket_that_cannot_be_tried_stays_and_the_error_says_why(
    agent: Agent, other: socket.socket, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    server = Server(agent, SocketAddress(path))
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", fails)
        with pytest.raises(ListenError, match=rf"agent\.sock: .*{errno.errorcode[code]}"):
            await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


async def test_the_socket_of_a_dead_agent_is_replaced(
    agent: Agent, other: socket.socket, path: Path
) -> None:
    other.close()
    server = Server(agent, SocketAddress(path))
    await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await server.stop()
