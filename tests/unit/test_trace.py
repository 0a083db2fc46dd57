"""`latencyprobe trace` from the shell's side, with an agent that plays a scenario."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

import pytest

from latencyprobe.commands.trace import default_modules, traced_stages
from latencyprobe.domain.stages import BY_NAME, PACKET_STAGES, Module
from tests.unit.command_process import DEADLINE_S, OWN_PID, closing, read_all, start, wait_for_line


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where the command makes its temporary files; nothing may be left there."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def trace(temporary: Path, scenario: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(temporary, scenario, "trace", *arguments)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def test_json_lines_are_documents_and_the_closing_line_accounts_for_all(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--duration", "500ms", "-o", "json")
    assert ended.returncode == 0, ended.stderr
    documents = [json.loads(line) for line in ended.stdout.splitlines()]
    figures = closing(ended.stderr)
    assert figures["printed"] == len(documents) >= 6
    assert figures["limited"] == len(documents) / 3
    assert figures["lost"] == 7
    for document in documents:
        assert document["stagesNs"]["rx.socket"] == 5_000_000
        assert (document["pid"], document["remoteAddress"]) == (4242, "198.51.100.1")


def test_the_table_has_one_header_and_no_colours_off_a_terminal(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--duration", "300ms")
    header, *lines = ended.stdout.splitlines()
    assert header.split()[:5] == ["TIME", "PID", "COMMAND", "CPU", "PROTO"]
    assert len(lines) >= 3
    assert all("socket    5ms" in line for line in lines)
    assert "\x1b" not in ended.stdout


def test_colours_are_for_a_terminal(temporary: Path) -> None:
    controller, terminal = pty.openpty()
    process = start(
        *(temporary, "measures", "trace", "--pid", OWN_PID, "--count", "2"), stdout=terminal
    )
    os.close(terminal)
    shown = read_all(controller)
    process.communicate(timeout=DEADLINE_S)
    assert "\x1b[31msocket    5ms\x1b[0m" in shown


def test_it_ends_after_as_many_packets_as_were_asked_for(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--count", "5", "-o", "json")
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 5 == closing(ended.stderr)["printed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trace_with_its_closing_line(
    temporary: Path, number: signal.Signals
) -> None:
    process = start(temporary, "measures", "trace", "--pid", OWN_PID, "-o", "json")
    wait_for_line(process, "measuring")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert closing(stderr)["printed"] == len(stdout.splitlines())
    assert closing(stderr)["lost"] == 7  # only in the last message


def test_a_reader_that_has_enough_ends_the_trace_quietly(temporary: Path) -> None:
    with start(temporary, "measures", "trace", "--pid", OWN_PID, "-o", "json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=DEADLINE_S) == 0
    assert "Traceback" not in stderr
    assert "Broken" not in stderr
    closing(stderr)


def test_a_reader_that_stands_still_does_not_keep_us_from_ending(temporary: Path) -> None:
    with start(temporary, "measures", "trace", "--pid", OWN_PID, "-o", "json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl(process.stdout, F_SETPIPE_SZ, 4096)  # full with the first line
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
        assert process.wait(timeout=DEADLINE_S) == 0
    assert closing(stderr)["unprinted"] > 0


def test_a_target_that_is_gone_ends_the_trace_and_is_named(temporary: Path) -> None:
    ended = trace(temporary, "loses-every-target", "--pid", OWN_PID)
    assert ended.returncode == 0
    assert f"[{OWN_PID}]: it ended" in ended.stderr
    closing(ended.stderr)


def test_a_command_passes_its_status_on_and_has_its_standard_output(temporary: Path) -> None:
    script = "echo hello; sleep 0.3; exit 7"
    ended = trace(temporary, "measures", "--", "sh", "-c", script)
    assert (ended.returncode, ended.stdout) == (7, "hello\n")
    assert "socket    5ms" in ended.stderr
    closing(ended.stderr)


# For 20 seconds at most.
UNTIL_THREE_LINES = """
echo hello
for _ in $(seq 200); do
    [ "$(wc -l < "$1")" -ge 3 ] && break
    sleep 0.1
done
"""


def test_an_output_file_keeps_the_lines_apart(
    temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "packets.json"
    ended = trace(
        *(temporary, "measures", "-o", "json", "--output-file", str(path), "--count", "3"),
        *("--", "sh", "-c", UNTIL_THREE_LINES, "sh", str(path)),
    )
    assert ended.stdout == "hello\n"
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def test_a_full_disk_ends_the_trace_with_an_error(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--output-file", "/dev/full")
    assert ended.returncode == 1
    assert "error: cannot write the packets: No space left on device" in ended.stderr
    assert closing(ended.stderr)["printed"] == 0


def test_sampling_is_reported(temporary: Path) -> None:
    ended = trace(temporary, "samples", "--pid", OWN_PID, "--count", "1")
    assert "only 25.0% of the packets were sampled" in ended.stderr


def test_packets_that_could_not_be_timed_are_reported(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--duration", "400ms")
    assert re.search(r"\d+ more packets could not be timed", ended.stderr), ended.stderr


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("fails-to-start", "the agent exited with status 3"),
        ("cannot-trace", "the agent returned INTERNAL: no BPF ring buffer"),
        ("finds-no-target", "no target can be measured:\n  "),
        ("dies-while-measuring", "error: the trace ended early: the agent exited with status 3"),
    ],
)
def test_a_failure_is_reported_with_the_agents_message(
    temporary: Path, scenario: str, message: str
) -> None:
    ended = trace(temporary, scenario, "--pid", OWN_PID)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_stage_that_this_machine_can_not_measure_is_an_error(temporary: Path) -> None:
    ended = trace(temporary, "measures", "--pid", OWN_PID, "--stage", "tx.qdisc")
    assert ended.returncode == 1
    assert "cannot trace on this machine: tx.qdisc: no such hook" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no target to measure: give --pid N"),
        (("--pid", "1", "--stage", "rx.sockets"), "unknown stage 'rx.sockets'; choose one of rx."),
        (
            ("--pid", "1", "--stage", "tcp.rtt"),
            "tcp.rtt cannot be traced per packet; choose one of rx.",
        ),
        (
            ("--pid", "1", "--stage", "tx.qdisc", "--modules", "rx,tcp"),
            "--stage tx.qdisc needs module tx, but --modules is rx,tcp; add the module",
        ),
        (("--pid", "1", "--modules", "tcp"), "--modules tcp cannot be traced per packet; add"),
        (("--pid", "1", "--min", "2"), "'2' is not a duration"),
        (("--pid", "1", "--min", "61s"), "61s is too long: the maximum is 60s"),
        (("--pid", "1", "--max-rate", "-1"), "-1 is not in the range"),
        (("--pid", "1", "--count", "0"), "0 is not in the range"),
    ],
)
def test_an_invalid_option_is_refused_with_the_valid_ones(
    temporary: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = trace(temporary, "measures", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.split())


def test_without_stages_the_totals_are_held_against_the_limit() -> None:
    assert traced_stages((), default_modules(())) == ("rx.total", "tx.total")
    assert traced_stages((), (Module.TX, Module.TCP)) == ("tx.total",)


@pytest.mark.parametrize("stage", [stage.name for stage in PACKET_STAGES])
def test_a_stage_brings_its_modules(stage: str) -> None:
    modules = default_modules((stage,))
    assert traced_stages((stage, stage), modules) == (stage,)
    assert set(modules) == set(BY_NAME[stage].modules)
