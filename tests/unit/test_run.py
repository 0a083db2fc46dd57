"""`latencyprobe run` from the shell's side, with an agent that plays a scenario."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.command_process import DEADLINE_S, OWN_PID, read_all, start, wait_for_line


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where the command makes its temporary files; nothing may be left there."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def run(temporary: Path, scenario: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(temporary, scenario, "run", *arguments)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def test_standard_output_holds_the_document_alone(temporary: Path) -> None:
    began = time.monotonic()
    ended = run(temporary, "measures", "--pid", OWN_PID, "--duration", "2s", "-o", "json")
    took_s = time.monotonic() - began
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["kind"] == "LatencyReport"
    assert 1.9 < document["durationSeconds"] < took_s
    (target,) = document["targets"]
    assert target["pids"] == [os.getpid()]
    counts = {stage["name"]: stage["count"] for stage in target["stages"]}
    assert counts["rx.socket"] == counts["rx.total"] >= 2 * 200
    assert target["counters"]["retransmits"] == counts["rx.total"] / 200
    reports = counts["rx.total"] / 200
    assert target["netnsCounters"] == {"TcpExtListenDrops": 2 * reports}
    assert document["node"]["counters"] == {"softnetTimeSqueezed": 3 * reports}
    (stage,) = document["node"]["stages"]
    assert (stage["name"], stage["detail"], stage["count"]) == ("rx.softirq", "NET_RX", reports)
    assert "attached in" in ended.stderr


def test_a_target_that_cannot_be_measured_does_not_keep_the_others(temporary: Path) -> None:
    targets = ["--pid", OWN_PID, "--cgroup", "/no/cgroup"]
    ended = run(temporary, "measures", *targets, "--duration", "200ms", "-o", "json")
    assert ended.returncode == 0
    assert "warning: not measured: /no/cgroup is no cgroup" in ended.stderr
    assert json.loads(ended.stdout)["targets"][1]["message"] == "/no/cgroup is no cgroup"


def test_a_run_ends_when_every_target_is_gone(temporary: Path) -> None:
    ended = run(temporary, "loses-every-target", "--pid", OWN_PID)
    assert ended.returncode == 0
    assert "SlowReader" in ended.stdout


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("fails-to-start", "the agent exited with status 3; end of its log:\n  | no BTF here"),
        ("dies-while-attaching", "the agent exited with status 3; end of its log:\n  | the kernel"),
        ("refuses", "the agent returned INTERNAL: kernel types: install BTF"),
        ("finds-no-target", "no target can be measured:\n  "),
        ("speaks-another-protocol", "uses protocol 9, this command uses 1; install both from"),
    ],
)
def test_without_any_measurement_there_is_an_error_and_no_report(
    temporary: Path, scenario: str, message: str
) -> None:
    ended = run(temporary, scenario, "--pid", OWN_PID, "--duration", "1s")
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("dies-while-measuring", "ended early: the agent exited with status 3; end of its log"),
        ("sends-nonsense", "ended early: the agent sent an invalid report: stages[0]"),
    ],
)
def test_figures_from_before_a_failure_are_reported(
    temporary: Path, scenario: str, message: str
) -> None:
    ended = run(temporary, scenario, "--pid", OWN_PID, "--duration", "5s", "-o", "json")
    assert ended.returncode == 1
    assert message in ended.stderr
    assert json.loads(ended.stdout)["kind"] == "LatencyReport"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_measurement_and_prints_the_report(
    temporary: Path, number: signal.Signals
) -> None:
    process = start(temporary, "measures", "run", "--pid", OWN_PID, "-o", "json")
    wait_for_line(process, "measuring")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert json.loads(stdout)["targets"]


def test_a_signal_before_anything_was_measured_ends_without_a_report(temporary: Path) -> None:
    process = start(temporary, "attaches-slowly", "run", "-v", "--pid", OWN_PID)
    wait_for_line(process, "attaching slowly")
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stdout) == (130, "")


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)]
)
def test_the_commands_status_and_output_are_its_own(
    temporary: Path, script: str, status: int
) -> None:
    ended = run(temporary, "measures", "--", "sh", "-c", f"echo hello; {script}")
    assert ended.returncode == status
    assert ended.stdout == "hello\n"
    assert "verdict: SlowReader" in ended.stderr


def test_json_follows_the_commands_output(temporary: Path) -> None:
    ended = run(temporary, "measures", "-o", "json", "--", "echo", "hello")
    first, _, rest = ended.stdout.partition("\n")
    assert first == "hello"
    assert json.loads(rest)["targets"][0]["name"].startswith("echo[")


def test_an_output_file_keeps_the_report_apart(temporary: Path, tmp_path_factory: Factory) -> None:
    report = tmp_path_factory.mktemp("reports") / "report.json"
    ended = run(
        temporary, "measures", "-o", "json", "--output-file", str(report), "--", "echo", "hello"
    )
    assert ended.stdout == "hello\n"
    assert json.loads(report.read_text())["kind"] == "LatencyReport"


Factory = pytest.TempPathFactory


@pytest.mark.parametrize(("command", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_executed_has_the_shells_status(
    temporary: Path, command: str, status: int
) -> None:
    ended = run(temporary, "measures", "--", command)
    assert ended.returncode == status
    assert f"error: cannot execute {command!r}" in ended.stderr
    assert "Warning" not in ended.stderr


def test_a_command_never_runs_unmeasured(temporary: Path) -> None:
    ended = run(temporary, "dies-while-attaching", "--", "echo", "hello")
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_command_outlives_a_failed_measurement(temporary: Path) -> None:
    ended = run(temporary, "dies-while-measuring", "--", "sh", "-c", "sleep 0.5; echo done; exit 4")
    assert (ended.returncode, ended.stdout) == (4, "done\n")
    assert "ended early" in ended.stderr


def test_a_command_is_ended_with_the_duration(temporary: Path) -> None:
    # `run` returns once every process has closed its end of the pipe: the command, too.
    ended = run(temporary, "measures", "--duration", "300ms", "--", "sleep", "3600")
    assert ended.returncode == 0


def test_sigterm_is_passed_on_to_the_command(temporary: Path) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    process = start(temporary, "measures", "run", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stdout) == (9, "bye\n")


def test_the_live_view_is_on_the_terminal_and_the_report_in_the_pipe(temporary: Path) -> None:
    controller, terminal = pty.openpty()
    process = start(
        *(temporary, "measures", "run", "--pid", OWN_PID, "--duration", "600ms"),
        *("--interval", "100ms"),
        stderr=terminal,
    )
    os.close(terminal)
    shown = read_all(controller)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "Ctrl-C ends the measurement" in shown
    assert "\x1b" not in stdout
    assert "verdict: SlowReader" in stdout


def test_a_report_that_its_file_cannot_hold_is_not_lost(temporary: Path) -> None:
    ended = run(
        *(temporary, "measures", "--pid", OWN_PID, "--duration", "200ms", "-o", "json"),
        *("--output-file", "/dev/full"),
    )
    assert (
        "cannot write '/dev/full': No space left on device; the report is printed instead"
        in ended.stderr
    )
    assert json.loads(ended.stdout)["kind"] == "LatencyReport"
