"""An agent whose background task fails ends with an error: it would measure or serve nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from latencyprobe.commands.pki import Authority
from latencyprobe.domain.identities import OPERATOR_NAME
from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_agent import agent as agent_module
from latencyprobe_agent import cli, main
from latencyprobe_agent.agent import Agent
from latencyprobe_agent.main import Settings
from latencyprobe_agent.serving.service import SocketAddress, TcpAddress
from latencyprobe_agent.serving.tls_proxy import TlsProxy
from latencyprobe_agent.target_events import TargetEvents
from tests.unit.agent.proxied import write_files
from tests.unit.agent.running import until
from tests.unit.agent.scripted import ScriptedEngine


def fail(*_: object, **__: object) -> Any:
    """Fail as a bug would."""
    raise RuntimeError("a bug")


async def test_an_agent_that_cannot_follow_its_targets_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = ScriptedEngine()
    monkeypatch.setattr(TargetEvents, "__enter__", fail)
    settings = Settings(address=SocketAddress(tmp_path / "socket"), node_name="blue")

    with pytest.raises(TaskFailedError, match="'measurement' has failed: RuntimeError: a bug"):
        async with asyncio.timeout(20):
            await main.run(settings, lambda **_: engine)
    assert not (tmp_path / "socket").exists()


def test_the_command_of_an_agent_with_a_failed_task_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(_: object) -> None:
        raise TaskFailedError("measurement", RuntimeError("a bug"))

    for name in ("check_capabilities", "raise_open_files_limit"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "run", run)
    result = CliRunner().invoke(cli.agent_command, [f"--socket={tmp_path}/socket"])

    assert result.exit_code == 1
    assert "the task 'measurement' has failed: RuntimeError: a bug; start again" in result.output


async def test_an_agent_that_cannot_listen_to_its_targets_for_once_tries_again(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_module, "_RETRY_UNEXPECTED_S", 0)
    calls: list[TargetEvents] = []

    def fail_once(events: TargetEvents) -> None:
        calls.append(events)
        if len(calls) == 1:
            raise OSError("no space left on device")

    monkeypatch.setattr(TargetEvents, "listen", fail_once)
    agent._wake.set()
    await until(lambda: len(calls) > 1, "the next attempt")
    assert "unexpected error; next attempt" in caplog.text


@pytest.mark.parametrize("work", ["_accept", "_end_invalid"])
async def test_an_agent_whose_tls_port_is_served_no_more_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: str
) -> None:
    async def fails(*_: object) -> None:
        fail()

    monkeypatch.setattr(TlsProxy, work, fails)
    files = write_files(tmp_path, Authority(days=1))
    settings = Settings(TcpAddress("127.0.0.1:0", files, OPERATOR_NAME), node_name="blue")

    with pytest.raises(TaskFailedError, match="has failed: RuntimeError: a bug"):
        async with asyncio.timeout(20):
            await main.run(settings, lambda **_: ScriptedEngine())
