"""A process and a cgroup whose names attack the terminal of the person who measures them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.command import DEADLINE_S, LATENCYPROBE
from tests.live.leftovers import Traces
from tests.live.targets import made_cgroup
from tests.unit.command_process import read_all

_PR_SET_NAME = 15
NAME = b"\x1b[2J\x1b[H\x1b[8mok"
SHOWN = r"\x1b[2J\x1b[H\x1b[8mok"
CGROUP = "a\x1b[2J\x9b2J\u202e"
SHOWN_CGROUP = r"a\x1b[2J\x9b2J\u202e"
# rich's own sequences: colours, and the redrawing of the live view.
_OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[2K|\x1b\[\d*A|\x1b\[\?25[lh]|\r")
# Calls itself by the name, also by a thread, and talks to itself until its input ends.
TALKER = f"""
import ctypes, select, socket, sys, threading
ctypes.CDLL(None).prctl({_PR_SET_NAME}, {NAME!r})
thread = threading.Thread(target=threading.Event().wait, daemon=True)
thread.start()
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
print(thread.native_id, flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    client.sendall(b"a")
    server.recv(1)
"""


@pytest.fixture(autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """Sees to it that nothing is left behind."""
    watch = Traces(tmp_path_factory.mktemp("temporary"))
    yield watch
    watch.assert_gone()


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    with made_cgroup(CGROUP) as directory:
        yield directory


@pytest.fixture(scope="module")
def talker(cgroup: Path) -> Iterator[tuple[str, str]]:
    """Its process id, and that of its thread."""
    process = subprocess.Popen(
        ["/usr/bin/python3", "-I", "-c", TALKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    thread = process.stdout.readline().decode().strip()
    (cgroup / "cgroup.procs").write_text(str(process.pid))
    yield str(process.pid), thread
    process.stdin.close()
    process.wait(DEADLINE_S)
    process.stdout.close()


def on_a_terminal(traces: Traces, *arguments: str) -> str:
    """Run the command in a terminal; return the text that it shows there."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*LATENCYPROBE, *arguments],
        env=traces.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = _OWN_SEQUENCES.sub("", read_all(controller))
    process.wait(DEADLINE_S)
    assert "Traceback" not in shown
    return shown


def assert_printable(shown: str) -> None:
    assert not {each for each in shown if not each.isprintable()} - {"\n"}, shown


def test_the_table_and_the_live_view_show_names_as_text(
    traces: Traces, talker: tuple[str, str], cgroup: Path
) -> None:
    targets = ["--pid", talker[0], "--cgroup", str(cgroup)]
    shown = on_a_terminal(traces, "run", *targets, "--duration", "3s", "--interval", "500ms")
    assert_printable(shown)
    assert "Ctrl-C ends the measurement" in shown
    assert "verdict: " in shown
    unfolded = shown.replace("\n", "")
    assert SHOWN in unfolded
    assert SHOWN_CGROUP in unfolded


@pytest.mark.parametrize("subcommand", ["run", "trace"])
def test_json_on_a_terminal_has_escapes(
    traces: Traces, talker: tuple[str, str], cgroup: Path, subcommand: str
) -> None:
    limit = ["--min", "0ns", "--count", "3"] if subcommand == "trace" else []
    targets = ["--pid", talker[0], "--cgroup", str(cgroup)]
    shown = on_a_terminal(
        traces, subcommand, "-q", *targets, "--duration", "2s", "-o", "json", *limit
    )
    assert_printable(shown)
    if subcommand == "run":
        process, group = json.loads(shown)["targets"]
        assert process["name"] == f"{SHOWN}[{talker[0]}]"
        assert SHOWN_CGROUP in group["name"]
        assert SHOWN_CGROUP in group["cgroup"]
    else:
        first, *_ = shown.splitlines()
        assert json.loads(first)["command"] == NAME.decode()


def test_an_error_shows_the_name_of_a_thread_as_text(
    traces: Traces, talker: tuple[str, str]
) -> None:
    shown = on_a_terminal(traces, "run", "--pid", talker[1])
    assert_printable(shown)
    assert f"is a thread of process {talker[0]} ({SHOWN})" in shown


def test_a_traces_table_and_farewell_show_names_as_text(traces: Traces) -> None:
    command = [sys.executable, "-I", "-c", TALKER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    controller, terminal = pty.openpty()
    tracing = subprocess.Popen(
        [*LATENCYPROBE, "trace", "--pid", str(process.pid), "--min", "0ns"],
        env=traces.environment,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    first = os.read(controller, 1)
    while b"rx.total" not in first:
        first += os.read(controller, 4096)
    process.stdin.close()
    process.wait(DEADLINE_S)
    process.stdout.close()
    shown = _OWN_SEQUENCES.sub("", first.decode(errors="replace") + read_all(controller))
    assert tracing.wait(DEADLINE_S) == 0
    assert_printable(shown)
    assert f"latencyprobe: {SHOWN}[{process.pid}]: " in shown
