"""Names and messages that attack their reader, through every output of the command line.

A name belongs to a process, a cgroup, a device or an agent, not to the reader. None of its control
characters reaches standard output, standard error or a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latencyprobe.domain.coverage import CoverageState, StageCoverage
from latencyprobe.domain.document import LatencyReport, Node
from latencyprobe.domain.overhead import HookOverhead, ProgramsOverhead
from latencyprobe.domain.serialisation import document_of
from latencyprobe.exposition.page import metrics_page
from latencyprobe.protocol.measurements import measurement_from_proto, node_from_proto
from latencyprobe.protocol.packets import packet_from_proto
from latencyprobe.protocol.states import coverage_from_proto
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.serving.metrics import AgentMetrics
from latencyprobe_agent.serving.tls_proxy import RefusalLog, TlsRefusal
from tests.unit.command_process import DEADLINE_S, read_all, start
from tests.unit.hostile_text import HOSTILE, HOSTILE_COMM, VISIBLE, VISIBLE_COMM, unprintable
from tests.unit.scripted_agent import SLOW_PACKETS, hostile

_PR_SET_NAME = 15
# rich's own sequences: colours, and the redrawing of the live view.
_OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[2K|\x1b\[\d*A|\x1b\[\?25[lh]|\r")
_FAILURES = (
    "fails-to-start",
    "dies-while-attaching",
    "refuses",
    "finds-no-target",
    "speaks-another-protocol",
)
_ENDS_EARLY = ("dies-while-measuring", "sends-nonsense", "loses-every-target")


@pytest.fixture(scope="module")
def pid() -> Iterator[str]:
    """A process with a hostile name."""
    named = f"import ctypes; ctypes.CDLL(None).prctl({_PR_SET_NAME}, {HOSTILE_COMM!r}); "
    process = subprocess.Popen(
        [sys.executable, "-c", named + "print('named', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    yield str(process.pid)
    process.stdin.close()
    process.wait()
    process.stdout.close()


def targets(pid: str) -> tuple[str, ...]:
    return (
        "--pid",
        pid,
        "--cgroup",
        f"/a/{HOSTILE[:-1].replace(chr(0), '')}",
        "--netns",
        "/\x9b2J",
    )


def outputs(temporary: Path, scenario: str, *arguments: str) -> str:
    """Run the command with a hostile agent; return both outputs, which are printable."""
    process = start(temporary, f"hostile:{scenario}", *arguments)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in stderr, stderr
    assert scenario != "measures" or process.returncode == 0, stderr
    assert not unprintable(stdout), stdout
    assert not unprintable(stderr), stderr
    return stdout + stderr


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_report_shows_hostile_names_as_text(tmp_path: Path, pid: str, output: str) -> None:
    shown = outputs(tmp_path, "measures", "run", *targets(pid), "--duration", "300ms", "-o", output)
    names = json.dumps([VISIBLE, VISIBLE_COMM])[2:-2].split('", "')
    unfolded = re.sub(r"\s+", "", shown)
    for name in names if output == "json" else (VISIBLE, VISIBLE_COMM):
        assert name in unfolded


def test_json_is_valid_with_hostile_names(tmp_path: Path, pid: str) -> None:
    file = tmp_path / "report.json"
    outputs(
        tmp_path,
        "measures",
        "run",
        *targets(pid),
        *("--duration", "300ms", "-o", "json", "--output-file", str(file)),
    )
    text = file.read_text()
    assert not unprintable(text)
    document = json.loads(text)
    assert document["targets"][0]["name"] == f"{VISIBLE_COMM}[{pid}]"
    assert not any(unprintable(each) for each in _texts(document))


@pytest.mark.parametrize("scenario", [*_FAILURES, *_ENDS_EARLY])
def test_errors_and_warnings_show_hostile_names_as_text(
    tmp_path: Path, pid: str, scenario: str
) -> None:
    outputs(tmp_path, scenario, "run", "-v", *targets(pid), "--duration", "5s")


# Messages are printed alike beside both outputs.
@pytest.mark.parametrize(
    ("scenario", "output"),
    [
        *((scenario, "table") for scenario in ("measures", "cannot-trace", *_FAILURES)),
        *((scenario, "json") for scenario in ("measures", *_ENDS_EARLY)),
    ],
)
def test_a_trace_shows_hostile_names_as_text(
    tmp_path: Path, pid: str, scenario: str, output: str
) -> None:
    shown = outputs(tmp_path, scenario, "trace", *targets(pid), "--duration", "300ms", "-o", output)
    if (scenario, output) == ("measures", "table"):
        assert f"server{VISIBLE}" in shown


def test_json_lines_hold_the_exact_name_of_a_command(tmp_path: Path, pid: str) -> None:
    process = start(
        tmp_path, "hostile:measures", "trace", "--pid", pid, "--count", "1", "-o", "json"
    )
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert json.loads(stdout)["command"] == f"server{HOSTILE}"


def test_the_live_view_shows_hostile_names_as_text(tmp_path: Path, pid: str) -> None:
    controller, terminal = pty.openpty()
    process = start(
        tmp_path,
        "hostile:measures",
        "run",
        *targets(pid),
        *("--duration", "600ms", "--interval", "100ms"),
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = _OWN_SEQUENCES.sub("", read_all(controller))
    assert process.wait(timeout=DEADLINE_S) == 0
    assert "Ctrl-C ends the measurement" in shown
    assert VISIBLE_COMM in shown
    assert not unprintable(shown)


@pytest.mark.parametrize("subcommand", ["run", "trace"])
def test_a_command_with_a_hostile_name_is_shown_as_text(tmp_path: Path, subcommand: str) -> None:
    name = b"a\x1b[2J\xc2\x9b\xff\n[red]"
    script = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    shown = outputs(tmp_path, "measures", subcommand, "-o", "json", "--", str(script))
    if subcommand == "run":
        assert r"a\\x1b[2J\\x9b\\udcff\\n[red][" in shown
    script.unlink()
    gone = outputs(tmp_path, "samples", subcommand, "--", str(script))
    assert r"a\x1b[2J\x9b\udcff\n[red]': No such file or directory" in gone


@pytest.mark.parametrize("option", ["--cgroup", "--netns"])
def test_a_path_that_is_no_text_is_measured_and_printed_with_escapes(
    tmp_path: Path, option: str
) -> None:
    process = start(tmp_path, "measures", "run", option, "/a\udcff\x1b[2J", "--duration", "1s")
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    assert not unprintable(stdout)
    assert not unprintable(stderr)


# --- What enters by the protocol, for the operator as well ---


def test_received_names_are_printable() -> None:
    node = node_from_proto(
        pb.NodeContext(
            stages=[pb.StageDelta(name="irq.hard", detail=HOSTILE, sampling_ratio=1)],
            counters={f"{HOSTILE}:a": 1},
        )
    )
    assert [key.detail for key in node.stages] == [VISIBLE + "[/nope]"]
    assert node.counters == {f"{VISIBLE}[/nope]:a": 1}
    netns = measurement_from_proto([], {HOSTILE: 1}, {HOSTILE: 1})
    assert (netns.counters, netns.netns_counters) == ({}, {VISIBLE + "[/nope]": 1})
    coverage = coverage_from_proto(pb.StageCoverage(name=HOSTILE, hook=HOSTILE, reason=HOSTILE))
    assert not any(map(unprintable, (coverage.name, coverage.hook, coverage.reason)))
    assert not unprintable(packet_from_proto(hostile(SLOW_PACKETS[0])).protocol)


def test_names_with_one_printable_form_are_one_counter() -> None:
    assert node_from_proto(pb.NodeContext(counters={"\x1b": 1, r"\x1b": 2})).counters == {
        r"\x1b": 3
    }


def test_documents_hold_printable_text_alone() -> None:
    """The status of a probe and the report of a run are such documents."""
    report = LatencyReport(
        Node(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        1.0,
        (),
        (StageCoverage(HOSTILE, CoverageState.PARTIAL, HOSTILE, HOSTILE),),
        ProgramsOverhead(
            0.1, 110, HOSTILE, (HOSTILE,), (HookOverhead(HOSTILE, 1, permanent=True),)
        ),
    )
    assert not any(unprintable(each) for each in _texts(document_of(report)))


def test_metrics_carry_no_clients_text() -> None:
    metrics = AgentMetrics()

    async def refuse() -> None:
        for refusal in TlsRefusal:
            RefusalLog(metrics.count_refusal).refuse(refusal, HOSTILE, HOSTILE)

    asyncio.run(refuse())
    page = metrics_page(metrics.registry)({}).body.decode()
    assert f'reason="{TlsRefusal.FOREIGN}"}} 1.0' in page
    assert not unprintable(page)
    assert "owned" not in page


def _texts(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from _texts(value)
    elif isinstance(document, list):
        for each in document:
            yield from _texts(each)
