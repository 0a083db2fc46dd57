"""What people type is checked as it is read, and no subcommand loads what it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from latencyprobe import __version__
from latencyprobe.commands import cli


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, prog_name="latencyprobe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no target to measure: give --pid N, --cgroup PATH, --netns PATH or -- COMMAND"),
        (["--pid", "0"], "'--pid': 0 is not in the range"),
        (["--pid", "nginx"], "'--pid': 'nginx' is not a valid integer"),
        (["--pid", "1", "--port", "70000"], "'--port': 70000 is not in the range 1<=x<=65535"),
        (["--pid", "1", "--port", "0"], "'--port': 0 is not in the range 1<=x<=65535"),
        (
            ["--pid", "1", "--modules", "rx,nic"],
            "unknown module 'nic'; choose one of rx, tx, tcp, irq, sched",
        ),
        (["--pid", "1", "--modules", ","], "no module given; choose from rx, tx, tcp, irq, sched"),
        (["--pid", "1", "--duration", "10"], "'--duration': '10' is not a duration; write a"),
        (["--pid", "1", "--duration", "-1s"], "'--duration': '-1s' is not a duration"),
        (["--pid", "1", "--duration", "1ms"], "1ms is too short: the minimum is 100ms"),
        (["--pid", "1", "--interval", "1h"], "1h is too long: the maximum is 600s"),
        (["--pid", "1", "--max-cpu-percent", "-1"], "'-1' is not a number of 0 or more, such as 1"),
        (["--pid", "1", "--max-cpu-percent", "nan"], "'nan' is not a number of 0 or more"),
        (["--pid", "1", "--protocol", "icmp"], "'icmp' is not one of 'tcp', 'udp'"),
        (
            ["--pid", "1", "--protocol", "udp", "--modules", "tcp"],
            "module tcp measures connections, but the filter allows only UDP; add module rx",
        ),
        (["--pid", "1", "-o", "yaml"], "'yaml' is not one of 'table', 'json'"),
        (["--pid", "1", "--output-file", "/no/x"], "cannot write '/no/x': No such file"),
        (["--pod", "x"], "No such option"),
    ],
)
def test_wrong_usage_is_reported_with_the_right_usage(arguments: list[str], message: str) -> None:
    result = invoke("run", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["demo", "--help"]])
def test_help_has_examples(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_an_option_and_a_command_print_the_version(arguments: list[str]) -> None:
    assert invoke(*arguments).stdout == f"latencyprobe, version {__version__}\n"


def test_an_unknown_command_is_refused() -> None:
    result = invoke("mesure")
    assert result.exit_code == 2
    assert "No such command 'mesure'" in result.stderr


def test_a_subcommand_whose_modules_are_not_installed_is_refused_with_the_missing_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "latencyprobe.commands.pki", None)  # its import fails
    answer = CliRunner().invoke(cli.main, ["pki", "init", "certificates"])
    assert answer.exit_code == 1
    assert answer.output == (
        "Error: `latencyprobe pki` is not available: this installation lacks the Python module "
        "latencyprobe.commands.pki\n"
    )


def test_every_subcommand_of_the_table_exists() -> None:
    for name in cli.SUBCOMMANDS:
        result = invoke(name, "--help")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], {"grpc", "rich", "kopf", "kubernetes", "latencyprobe_agent"}),
        (["run", "--help"], {"kopf", "kubernetes", "latencyprobe_agent", "latencyprobe_operator"}),
        (["agent", "--help"], {"kopf", "kubernetes", "rich", "latencyprobe_operator"}),
        (["pki", "--help"], {"google.protobuf", "grpc", "rich", "kubernetes"}),
    ],
)
def test_a_subcommand_imports_only_what_it_needs(arguments: list[str], unwanted: set[str]) -> None:
    program = (
        "import sys; from latencyprobe.commands.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print('\\nimported:', *sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    ).stdout
    imported = set(printed.rpartition("imported:")[2].split())
    assert "latencyprobe.commands.cli" in imported
    assert not unwanted & imported


def test_an_output_file_keeps_its_content_until_there_is_a_new_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("the last report")
    assert invoke("run", "--output-file", str(report)).exit_code == 2
    assert report.read_text() == "the last report"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
def test_without_privileges_the_missing_capabilities_are_named() -> None:
    drop = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all"]
    program = "from latencyprobe.process.capabilities import *; require_capabilities()"
    ended = subprocess.run(
        [*drop, "/usr/bin/python3", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert "CAP_BPF loads the eBPF programs" in ended.stderr
    assert "sudo" in ended.stderr
