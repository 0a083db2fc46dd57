"""Names that are no text, and terminals without our characters, cost no measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latencyprobe.local.session import CgroupTarget, MeasurementRequest, NetnsTarget
from latencyprobe.local.session import _desired_state as desired_state
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_agent.desired import CgroupSelector, NetnsSelector
from latencyprobe_agent.serving.messages import status_message
from latencyprobe_agent.serving.requests import parse_desired
from latencyprobe_agent.targets.facts import failed
from tests.patience import patient
from tests.unit.command_process import COMMAND_LINE, OWN_PID

NOT_UTF8 = b"/cgroups/caf\xe9"
ENVIRONMENTS = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "C"},
    {"LC_ALL": "C.UTF-8"},
]


def _run(
    folder: Path, environment: dict[str, str], *arguments: str | bytes
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(COMMAND_LINE), "measures", "run", "--duration", "200ms", *arguments],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "output"),
    [
        *((environment, "table") for environment in ENVIRONMENTS),
        (ENVIRONMENTS[0], "json"),
    ],
)
def test_the_report_is_written_in_each_encoding_of_the_terminal(
    tmp_path: Path, environment: dict[str, str], output: str
) -> None:
    ended = _run(tmp_path, environment, "--pid", OWN_PID, "--cgroup", NOT_UTF8, "-o", output)
    assert ended.returncode == 0, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"rx.total" in ended.stdout
    if output == "json":
        names = [target["name"] for target in json.loads(ended.stdout)["targets"]]
        assert len(names) == 2
        assert names[1].startswith("/cgroups/caf")


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_file_takes_any_name_as_well(tmp_path: Path, output: str) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.json"
    ended = _run(tmp_path, {}, "--cgroup", NOT_UTF8, "-o", output, "--output-file", file)
    assert ended.returncode == 0, ended.stderr
    with open(file, "rb") as written:
        content = written.read()
    assert b"rx.total" in content
    if output == "json":
        assert json.loads(content)["targets"][0]["name"].startswith("/cgroups/caf")


def test_a_usage_error_names_what_it_cannot_show(tmp_path: Path) -> None:
    ended = _run(tmp_path, {"PYTHONIOENCODING": "ascii"}, "--modules", NOT_UTF8)
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr
    assert b"unknown module '/cgroups/caf" in ended.stderr


def test_escapes_are_valid_json_beyond_the_first_plane_too() -> None:
    code = (
        "import json, sys\n"
        "from latencyprobe.process.streams import escape_what_cannot_be_encoded\n"
        "escape_what_cannot_be_encoded()\n"
        "print(json.dumps('\\xe9 \\u2026 \\U0001f600 \\udcff', ensure_ascii=False))\n"
    )
    for encoding in ("ascii", "latin-1", "utf-8"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        ).stdout
        assert json.loads(printed.decode(encoding)) == "\xe9 \u2026 \U0001f600 \udcff"


def test_a_path_reaches_the_agent_byte_by_byte() -> None:
    path = os.fsdecode(NOT_UTF8)
    request = MeasurementRequest((CgroupTarget("c", path), NetnsTarget("n", path)), ())
    sent = desired_state(request)
    sent.probes[0].modules.append("rx")
    received = parse_desired(pb.DesiredState.FromString(sent.SerializeToString()))
    selectors = [target.selector for target in received.probes[0].targets]
    assert selectors == [CgroupSelector(path), NetnsSelector(path)]


def test_the_agents_message_on_such_a_path_is_text() -> None:
    message = f"{os.fsdecode(NOT_UTF8)} does not exist"
    status = status_message("t", failed(message))
    assert status.message == "/cgroups/caf\\udce9 does not exist"
