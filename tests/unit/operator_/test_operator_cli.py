"""The operator's command: options, environment, and clear errors."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from latencyprobe.process.tasks import TaskFailedError
from latencyprobe_agent.cli import agent_command
from latencyprobe_operator import cli, logs
from latencyprobe_operator.admission import AdminLimits
from latencyprobe_operator.agents.credentials import ClientTlsFiles
from latencyprobe_operator.kube.lease import LeaseRecord
from latencyprobe_operator.leadership import LeadershipLostError, LeaseTiming
from latencyprobe_operator.main import ElectionOptions, Options


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """The options that the operator would have been started with."""
    started: list[Options] = []
    monkeypatch.setattr(cli, "run", started.append)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    return started


@pytest.fixture
def tls(operator_tls: ClientTlsFiles) -> list[str]:
    """The options that name the certificate's files."""
    return [
        f"--ca-file={operator_tls.ca}",
        f"--cert-file={operator_tls.certificate}",
        f"--key-file={operator_tls.key}",
    ]


def test_the_defaults_are_for_agents_beside_the_operator(
    started: list[Options], tls: list[str]
) -> None:
    result = CliRunner().invoke(cli.operator_command, tls)

    assert result.exit_code == 0, result.output
    (options,) = started
    assert options.namespace == "latencyprobe-system"
    assert options.agent_selector == "app.kubernetes.io/name=latencyprobe-agent"
    assert (options.agent_port, options.watch_namespaces, options.agents) == (9345, (), {})


def test_the_limits_are_options(started: list[Options], tls: list[str]) -> None:
    for arguments in ([], ["--min-interval=5s", "--max-probes-per-namespace=3"]):
        result = CliRunner().invoke(cli.operator_command, [*tls, *arguments])
        assert result.exit_code == 0, result.output

    assert [options.limits for options in started] == [AdminLimits(1.0, 100), AdminLimits(5.0, 3)]


@pytest.mark.parametrize("argument", ["--min-interval=soon", "--max-probes-per-namespace=0"])
def test_invalid_limits_are_refused(started: list[Options], tls: list[str], argument: str) -> None:
    assert CliRunner().invoke(cli.operator_command, [*tls, argument]).exit_code == 2
    assert not started


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], {"shop": False, "cart": False}),
        (["shop"], {"shop": True, "cart": False}),
        (["shop", "cart"], {"shop": True, "cart": True}),
        (["*"], {"shop": True, "cart": True}),
    ],
)
def test_node_figures_are_for_the_named_namespaces(
    started: list[Options], tls: list[str], arguments: list[str], allowed: dict[str, bool]
) -> None:
    named = [f"--node-figures-namespace={name}" for name in arguments]
    result = CliRunner().invoke(cli.operator_command, [*tls, *named])

    assert result.exit_code == 0, result.output
    assert {name: started[0].limits.allow_node_figures(name) for name in allowed} == allowed


@pytest.mark.parametrize("name", ["", "A_B", "a,b", "**", "team-*", "-a", "a" * 64])
def test_an_invalid_namespace_is_refused_with_advice(
    started: list[Options], tls: list[str], name: str
) -> None:
    result = CliRunner().invoke(cli.operator_command, [*tls, f"--node-figures-namespace={name}"])

    assert result.exit_code == 2
    assert f"{name!r} is not the name of a namespace" in " ".join(result.output.split())
    assert not started


def test_without_an_election_it_serves_at_once(started: list[Options], tls: list[str]) -> None:
    for arguments in ([], ["--no-leader-elect"], ["--lease-duration=60s"]):
        assert CliRunner().invoke(cli.operator_command, [*tls, *arguments]).exit_code == 0
    assert [options.election for options in started] == [None] * 3


def test_the_lease_of_the_election_is_named_by_options(
    started: list[Options], tls: list[str]
) -> None:
    arguments = [
        *("--leader-elect", "--lease-namespace=ops", "--lease-name=lp"),
        *("--lease-duration=1m", "--lease-renew-deadline=40s", "--lease-retry-period=500ms"),
    ]
    for each in (["--leader-elect"], arguments):
        assert CliRunner().invoke(cli.operator_command, [*tls, *each]).exit_code == 0
    assert [options.election for options in started] == [
        ElectionOptions(namespace="latencyprobe-system", name="latencyprobe-operator"),
        ElectionOptions(namespace="ops", name="lp", timing=LeaseTiming(60, 40.0, 0.5)),
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lease-duration=10s", "must be longer than the renew deadline (10 s)"),
        ("--lease-renew-deadline=2s", "longer than the retry period (2 s)"),
        ("--lease-retry-period=0s", "above 0"),
        ("--lease-duration=15500ms", "the API has whole seconds"),
    ],
)
def test_times_of_the_lease_that_contradict_each_other_are_refused(
    started: list[Options], tls: list[str], argument: str, message: str
) -> None:
    result = CliRunner().invoke(cli.operator_command, [*tls, "--leader-elect", argument])

    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert started == []


def test_a_lost_lease_ends_the_process_with_a_message(
    tls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(_: Options) -> None:
        raise LeadershipLostError("ops/lp", LeaseRecord("two", 15, 7))

    monkeypatch.setattr(cli, "run", lose)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    result = CliRunner().invoke(cli.operator_command, tls)

    assert result.exit_code == 1
    assert "lost the Lease ops/lp: two holds it" in result.output


def test_a_failed_task_ends_the_process_with_an_error(
    tls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Options) -> None:
        raise TaskFailedError("warm-up", RuntimeError("a bug"))

    monkeypatch.setattr(cli, "run", fail)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    result = CliRunner().invoke(cli.operator_command, tls)

    assert result.exit_code == 1
    assert "the task 'warm-up' has failed: RuntimeError: a bug; start again" in result.output


def test_options_come_from_the_environment_too(
    started: list[Options], operator_tls: ClientTlsFiles
) -> None:
    environment = {
        "LATENCYPROBE_CA_FILE": str(operator_tls.ca),
        "LATENCYPROBE_CERT_FILE": str(operator_tls.certificate),
        "LATENCYPROBE_KEY_FILE": str(operator_tls.key),
        "LATENCYPROBE_WATCH_NAMESPACE": "shop cart",
        "LATENCYPROBE_NODE_FIGURES_NAMESPACE": "shop cart",
        "LATENCYPROBE_STATIC_POD_NAMESPACE": "kube-system ops",
        "LATENCYPROBE_METRICS_ADDRESS": ":9090",
        "LATENCYPROBE_MIN_INTERVAL": "5s",
        "LATENCYPROBE_LEADER_ELECT": "true",
        "LATENCYPROBE_LEASE_DURATION": "1m",
        "LATENCYPROBE_LEASE_RENEW_DEADLINE": "40s",
        "LATENCYPROBE_LEASE_RETRY_PERIOD": "500ms",
    }
    result = CliRunner().invoke(cli.operator_command, env=environment)

    assert result.exit_code == 0, result.output
    assert started[0].watch_namespaces == ("shop", "cart")
    assert started[0].limits.node_figures_namespaces == {"shop", "cart"}
    assert started[0].limits.static_pod_namespaces == {"kube-system", "ops"}
    assert started[0].metrics_address == ("", 9090)
    assert started[0].limits.min_interval_s == 5
    assert started[0].election is not None
    assert started[0].election.timing == LeaseTiming(60, 40.0, 0.5)


@pytest.mark.parametrize("command", [cli.operator_command, agent_command])
def test_an_option_has_its_own_name_in_the_environment(command: click.Command) -> None:
    options = [each for each in command.params if each.param_type_name == "option"]
    for option in options:
        name = option.opts[0].removeprefix("--").replace("-", "_").upper()
        assert (option.envvar or f"LATENCYPROBE_{option.name}".upper()) == f"LATENCYPROBE_{name}"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7:9348", ("10.0.0.7", 9348)),
        ("[fd00::7]:9348", ("fd00::7", 9348)),
        (":9348", ("", 9348)),
    ],
)
def test_health_is_served_at_an_address_of_either_family(
    started: list[Options], tls: list[str], text: str, address: tuple[str, int]
) -> None:
    CliRunner().invoke(cli.operator_command, [*tls, f"--health-address={text}"])

    assert started[0].health_address == address


def test_agents_may_be_given(started: list[Options], tls: list[str]) -> None:
    CliRunner().invoke(cli.operator_command, [*tls, "--agent", "node-a=10.0.0.1:9345"])

    assert started[0].agents == {"node-a": "10.0.0.1:9345"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "node-a"], "is not NODE=HOST:PORT"),
        (["--agent-port", "70000"], "70000 is not in the range"),
        (["--key-file", "/nowhere"], "does not exist"),
    ],
)
def test_a_bad_option_is_refused(
    started: list[Options], tls: list[str], arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(cli.operator_command, [*tls, *arguments])

    assert result.exit_code == 2
    assert message in result.output
    assert started == []


def test_without_certificates_it_does_not_start(started: list[Options]) -> None:
    result = CliRunner().invoke(cli.operator_command, [])

    assert result.exit_code == 2
    assert "--ca-file" in result.output


def test_without_a_cluster_it_says_so(
    tls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    broken = tmp_path / "kubeconfig"
    broken.write_text("apiVersion: v1\nkind: Config\n")
    result = CliRunner().invoke(cli.operator_command, [*tls, f"--kubeconfig={broken}"])

    assert result.exit_code == 1
    assert "cannot find a cluster" in result.output
