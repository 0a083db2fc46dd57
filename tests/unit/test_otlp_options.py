"""The options of the push, of agent and operator alike, and clear errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from latencyprobe.otlp.settings import OtlpEndpoint, OtlpSettings, OtlpTlsFiles
from latencyprobe_agent import cli as agent_cli
from latencyprobe_agent import main as agent_main
from latencyprobe_agent.main import Settings, StartError
from latencyprobe_agent.serving.service import SocketAddress
from latencyprobe_operator import cli as operator_cli
from latencyprobe_operator import logs
from latencyprobe_operator.main import Options, operate

ENDPOINT = OtlpEndpoint("collector", 4317)
Run = Callable[..., OtlpSettings | None]


@pytest.fixture(params=["agent", "operator"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that gives options to one of the commands, and returns its settings."""
    started: list[Settings | Options] = []
    monkeypatch.setattr(agent_cli, "_start", lambda settings, **_: started.append(settings))
    monkeypatch.setattr(operator_cli, "run", started.append)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    command: click.Command = operator_cli.operator_command
    arguments = ["--socket=/s"]
    if request.param == "agent":
        command = agent_cli.agent_command
    else:
        (tmp_path / "pem").touch()
        arguments = [f"--{name}-file={tmp_path}/pem" for name in ("ca", "cert", "key")]

    def invoke(*options: str, **environment: str) -> OtlpSettings | None:
        result = CliRunner().invoke(command, [*arguments, *options], env=environment)
        if result.exit_code:
            assert (result.exit_code, started) == (2, [])
            raise click.UsageError(" ".join(result.output.split()))
        (settings,) = started
        return settings.otlp

    return invoke


def test_without_an_endpoint_there_is_no_push(run: Run) -> None:
    assert run() is None


def test_an_endpoint_is_reached_by_tls_every_30_s(run: Run) -> None:
    assert run("--otlp-endpoint=collector:4317") == OtlpSettings(
        ENDPOINT, OtlpTlsFiles(), None, 30.0, {}
    )


def test_every_setting_is_an_option(run: Run) -> None:
    settings = run(
        *("--otlp-endpoint=[fd00::7]:4317", "--otlp-interval=1m30s"),
        *("--otlp-ca-file=ca", "--otlp-cert-file=crt", "--otlp-key-file=key"),
        *("--otlp-headers-file=headers", "--otlp-resource-attribute=k8s.cluster.name=prod"),
        "--otlp-resource-attribute=deployment.environment.name=a=b",
    )

    assert settings == OtlpSettings(
        OtlpEndpoint("fd00::7", 4317),
        OtlpTlsFiles(Path("ca"), Path("crt"), Path("key")),
        Path("headers"),
        90.0,
        {"k8s.cluster.name": "prod", "deployment.environment.name": "a=b"},
    )
    assert str(settings.endpoint) == "[fd00::7]:4317"


def test_tls_is_left_out_if_asked_for(run: Run) -> None:
    settings = run("--otlp-endpoint=collector:4317", "--otlp-insecure")

    assert settings == OtlpSettings(ENDPOINT, None)


def test_options_come_from_the_environment_too(run: Run) -> None:
    settings = run(
        LATENCYPROBE_OTLP_ENDPOINT="collector:4317",
        LATENCYPROBE_OTLP_INTERVAL="45s",
        LATENCYPROBE_OTLP_RESOURCE_ATTRIBUTE="a.b=c d.e=f",
    )

    assert settings == OtlpSettings(ENDPOINT, interval_s=45.0, attributes={"a.b": "c", "d.e": "f"})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--otlp-endpoint=https://collector:4317"], "is a URL; write HOST:PORT"),
        (["--otlp-endpoint=collector"], "is not HOST:PORT, for example"),
        (["--otlp-endpoint=:4317"], "is not HOST:PORT, for example"),
        (["--otlp-endpoint=collector:0"], "is not HOST:PORT, for example"),
        (["--otlp-endpoint=fd00::7:4317"], "has an IPv6 address without brackets"),
        (["--otlp-interval=soon"], "'soon' is not a duration"),
        (["--otlp-interval=10ms"], "is shorter than 1 s"),
        (["--otlp-resource-attribute=prod"], "is not KEY=VALUE"),
        (["--otlp-resource-attribute=A=prod"], "is not KEY=VALUE"),
        (["--otlp-headers-file=x"], "need --otlp-endpoint"),
        (["--otlp-insecure"], "need --otlp-endpoint"),
        (["--otlp-endpoint=c:1", "--otlp-cert-file=x"], "give both --otlp-cert-file and"),
        (
            ["--otlp-endpoint=c:1", "--otlp-insecure", "--otlp-headers-file=x"],
            "anyone on the network could read the headers",
        ),
        (["--otlp-endpoint=c:1", "--otlp-insecure", "--otlp-ca-file=x"], "uses no certificate"),
    ],
)
def test_bad_options_are_refused_with_advice(run: Run, options: list[str], complaint: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        run(*options)

    # A line of the message may break within an option's name.
    assert complaint.replace(" ", "") in str(refused.value).replace(" ", "")


# --------------------------------------------------------------------------------- start


async def test_an_agent_does_not_start_with_files_that_cannot_be_used(tmp_path: Path) -> None:
    otlp = OtlpSettings(ENDPOINT, headers=tmp_path / "absent")
    settings = Settings(address=SocketAddress(tmp_path / "socket"), node_name="blue", otlp=otlp)

    with pytest.raises(StartError, match=f"cannot read {tmp_path}/absent"):
        await agent_main.run(settings, lambda **_: pytest.fail("it makes an engine"))


def test_an_operator_does_not_start_with_files_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_cli, "run", lambda options: asyncio.run(operate(options)))
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    (tmp_path / "pem").touch()
    files = [f"--{name}-file={tmp_path}/pem" for name in ("ca", "cert", "key")]
    options = ["--otlp-endpoint=collector:4317", f"--otlp-ca-file={tmp_path}/pem"]

    result = CliRunner().invoke(operator_cli.operator_command, [*files, *options])

    assert result.exit_code == 1
    assert f"{tmp_path}/pem is not a PEM certificate" in " ".join(result.output.split())
